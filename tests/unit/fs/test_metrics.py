"""The Prometheus page, as text; what it means is in docs/metrics.md, which is checked too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from zcfs.fs import metrics

from .conftest import STATS, STATUS

DOCUMENT = Path(__file__).parents[3] / "docs/metrics.md"

PAGE = """\
# HELP zcfs_info What is mounted, and how; always 1.
# TYPE zcfs_info gauge
zcfs_info{version="0.1.0",source="/srv/data",mountpoint="/mnt/data",device="0:45",\
protocol="7.45",engine="kernel",transport="dev",locks="source"} 1
# HELP zcfs_uptime_seconds Seconds since the mount was made.
# TYPE zcfs_uptime_seconds gauge
zcfs_uptime_seconds 12.5
# HELP zcfs_requests_total FUSE requests answered, by opcode.
# TYPE zcfs_requests_total counter
zcfs_requests_total{op="LOOKUP"} 10
zcfs_requests_total{op="READ"} 4
# HELP zcfs_request_errors_total FUSE requests answered with an error, by opcode.
# TYPE zcfs_request_errors_total counter
zcfs_request_errors_total{op="LOOKUP"} 2
zcfs_request_errors_total{op="READ"} 0
# HELP zcfs_request_seconds_total Seconds from taking a request to its answer, summed, by opcode.
# TYPE zcfs_request_seconds_total counter
zcfs_request_seconds_total{op="LOOKUP"} 0.0015
zcfs_request_seconds_total{op="READ"} 0.25
"""

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = NAME + r'="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
NUMBER = r"-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"
SAMPLE = re.compile(rf"({NAME})(?:\{{{LABEL}(?:,{LABEL})*\}})? {NUMBER}")


def families(page: str) -> dict[str, str]:
    """The type of each family; fails on a line that the format does not know."""
    found: dict[str, str] = {}
    for line in page.splitlines():
        if line.startswith("# HELP "):
            family = line.split()[2]
            assert family not in found
        elif line.startswith("# TYPE "):
            assert line.split()[2] == family
            found[family] = line.split()[3]
        else:
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match[1] == family
    return found


def test_page() -> None:
    page = metrics.render(STATUS, STATS)
    assert page.startswith(PAGE)
    assert families(page) == {metric.name: metric.kind for metric in metrics.METRICS}
    for line in (
        "zcfs_read_bytes_total 16384",
        'zcfs_copied_bytes_total{engine="pool",direction="read",by="kernel"} 16384',
        'zcfs_moved_bytes_total{engine="pool",direction="read"} 5',
        'zcfs_passthrough_bytes_total{engine="kernel",direction="read"} 77',
        "zcfs_pool_hits_total 3",
        "zcfs_relay_outstanding 1",
        'zcfs_open_files{engine="buffered"} 1',
        "zcfs_read_only 0",
        'zcfs_feature{feature="passthrough"} 1',
        'zcfs_feature{feature="over_io_uring"} 0',
        'zcfs_degradation{what="transport uring",reason="enable_uring is off"} 1',
    ):
        assert line + "\n" in page


def test_names_follow_the_conventions() -> None:
    for metric in metrics.METRICS:
        assert re.fullmatch(r"zcfs_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")


@pytest.mark.parametrize(
    ("value", "escaped"),
    [
        ("plain", "plain"),
        ('a"b', r"a\"b"),
        ("a\\b", r"a\\b"),
        ("a\nb", r"a\nb"),
        ("\\n", r"\\n"),
        ("ünïcode", "ünïcode"),
        ("byte \udcff", "byte ?"),
        ("lone \ud800", "lone ?"),
    ],
)
def test_labels_are_escaped(value: str, escaped: str) -> None:
    assert metrics.escape(value) == escaped
    page = metrics.render({"source": value}, {})
    assert f'zcfs_info{{source="{escaped}"}} 1\n' in page
    page.encode()


def test_what_is_missing_is_left_out() -> None:
    page = metrics.render({"uptime_s": 1}, {})
    assert families(page) == {"zcfs_info": "gauge", "zcfs_uptime_seconds": "gauge"}


@pytest.mark.parametrize("junk", [None, "text", [], [1], {"a": "b"}, {"a": None}, {"a": {"b": []}}])
def test_what_is_no_number_is_left_out(junk: Any) -> None:
    page = metrics.render(dict.fromkeys(STATUS, junk), dict.fromkeys(STATS, junk))
    families(page)


def test_every_metric_is_documented() -> None:
    rows = re.findall(r"^\| `(zcfs_\w+)(?:\{([a-z,]+)\})?` \| (\w+) \|", DOCUMENT.read_text(), re.M)
    assert [(name, kind) for name, _, kind in rows] == [
        (metric.name, metric.kind) for metric in metrics.METRICS
    ]
    page = metrics.render(STATUS, STATS)
    for name, labels, _ in rows:
        sample = re.search(rf"^{name}(?:{{(.*)}})? ", page, re.M)
        assert sample is not None
        assert re.findall(r'(\w+)="', sample[1] or "") == (labels.split(",") if labels else [])
