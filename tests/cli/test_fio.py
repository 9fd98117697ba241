"""The fio runner, without fio where that is possible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zcfs import fio
from zcfs.errors import UsageError, ZcfsError


def side(ios: int, iops: float, rate: int, latency: float) -> dict[str, object]:
    return {"total_ios": ios, "iops": iops, "bw_bytes": rate, "clat_ns": {"mean": latency}}


JOB = {"jobname": "a", "error": 0, "read": side(10, 100.0, 1000, 5000.0),
       "write": side(30, 300.0, 3000, 1000.0)}  # fmt: skip


def test_parse_skips_what_comes_before_the_json() -> None:
    text = "fio: a warning\n" + json.dumps({"jobs": [JOB]})
    assert fio.parse(text)[0]["jobname"] == "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no jobs"),
        ("{", "no JSON"),
        ('{"jobs": []}', "no jobs"),
        (json.dumps({"jobs": [JOB | {"error": 5}]}), "job a: Input/output error"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(ZcfsError, match=message):
        fio.parse(text)


def test_figure_adds_reads_and_writes() -> None:
    figure = fio.figure([JOB])
    assert (figure.iops, figure.bytes_per_s, figure.latency_us) == (400.0, 4000.0, 2.0)


def test_ratio_is_of_the_medians() -> None:
    def figures(*rates: float) -> list[fio.Figure]:
        return [fio.Figure(1.0, rate, 1.0) for rate in rates]

    result = fio.Comparison("n", "t", True, figures(1, 100, 2), figures(1, 3, 50))
    assert result.ratio == 1.5
    assert result.as_dict()["bare"]["bytes_per_s"] == 2


def test_turns_alternate() -> None:
    assert list(fio.turns("b", "m", 3)) == ["b", "m", "m", "b", "b", "m"]


def test_cells_have_names_of_their_own() -> None:
    assert len({cell.name for cell in fio.CELLS}) == len(fio.CELLS)
    assert {cell.name for cell in fio.cells_here()} <= {cell.name for cell in fio.CELLS}


@pytest.mark.parametrize("cell", fio.CELLS, ids=lambda cell: cell.name)
def test_arguments_stay_below_the_root(cell: fio.Cell) -> None:
    words = fio.arguments(cell, fio.Workspace("w", 4096), "/root", 1.5)
    assert any(word.startswith(("--filename=/root/w/", "--directory=/root/w")) for word in words)
    assert ("--runtime=1500ms" in words) == ("--time_based=1" in words)


@pytest.mark.parametrize(
    "line", ["filename=/etc/passwd", " directory = /tmp", "filename=a:/dev/sda"]
)
def test_a_job_with_an_absolute_path_is_refused(tmp_path: Path, line: str) -> None:
    job = tmp_path / "job.fio"
    job.write_text(f"[a]\nrw=read\n{line}\n")
    with pytest.raises(UsageError, match=r"job.fio:3: \w+ is absolute"):
        fio.check_job(str(job))


def test_a_job_with_relative_paths_is_fine(tmp_path: Path) -> None:
    job = tmp_path / "job.fio"
    job.write_text("[a]\nfilename=some/file\nioengine=psync\n; filename=/x in a comment\n")
    fio.check_job(str(job))


def test_workspace_is_taken_away(tmp_path: Path) -> None:
    with fio.workspace(tmp_path, 4 << 20, files=4) as work:
        sizes = [path.stat().st_size for path in work.paths(tmp_path, 4)]
    assert sizes == [4 << 20, 1 << 20, 1 << 20, 1 << 20]
    assert list(tmp_path.iterdir()) == []


def test_workspace_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ZcfsError, match="MiB free"), fio.workspace(tmp_path, 1 << 60):
        pass
    assert list(tmp_path.iterdir()) == []


def test_drop_pages_and_read_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fio.fill(path, 3 << 20)
    before = path.read_bytes()
    fio.drop_pages(path)
    fio.read_all(path)
    assert path.read_bytes() == before
