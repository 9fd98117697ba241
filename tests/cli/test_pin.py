"""mountctl pin and unpin, and what status says of them."""

from __future__ import annotations

import json
import os

import pytest

from .conftest import Run, Site, one_line
from .test_json import check, schema, undocumented

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="pins need root (CAP_SYS_ADMIN)")


def test_pin_status_unpin(site: Site, mountctl: Run) -> None:
    (site.source / "hot.db").write_bytes(b"x" * 300_000)
    site.mount("--policy", "**/*.ibd=pool", "--pin", "*.hot")
    for path in ("hot.db", site.point / "hot.db"):
        done = mountctl("pin", "--wait", site.point, path)
        assert (done.returncode, done.stdout) == (0, "hot.db  293.0 KiB  pinned\n"), done.stderr
    status = site.json("status", site.point)
    check("status", status)
    assert list(undocumented(schema("status"), status)) == []
    (pin,) = status["pins"]["list"]
    assert (pin["path"], pin["state"], pin["loaded"]) == ("hot.db", "pinned", 300_000)
    assert status["pins"]["used"] == 303_104
    lines = mountctl("status", site.point).stdout.splitlines()
    words = [line.split() for line in lines]
    assert ["policy", "**/*.ibd:", "pool"] in words
    assert ["policy", "*.hot:", "pinned", "at", "the", "first", "open"] in words
    assert ["pin", "hot.db", "293.0", "KiB", "pinned"] in words
    assert any(line.startswith("pins ") and "1 files, 296.0 KiB of " in line for line in lines)
    done = mountctl("unpin", "--json", site.point, "hot.db")
    document = json.loads(done.stdout)
    check("pin", document)
    assert [pin["state"] for pin in document] == ["unpinned"]
    assert site.json("status", site.point)["pins"]["files"] == 0


def test_refused_is_status_1(site: Site, mountctl: Run) -> None:
    site.mount("--pin-size", "64K")
    (site.source / "large").write_bytes(bytes(65_537))
    done = mountctl("pin", site.point, "large")
    assert done.returncode == 1
    assert "large: 65537 bytes, and 65536 of --pin-size 65536 are left" in one_line(done)
    done = mountctl("pin", "--json", site.point, "large", "nowhere")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    check("pin", document)
    assert [pin["state"] for pin in document] == ["refused", "refused"]
    done = mountctl("unpin", site.point, "nowhere")
    assert done.returncode == 1
    assert "nowhere: No such file or directory" in one_line(done)


def test_a_path_that_is_not_below(site: Site, mountctl: Run) -> None:
    site.mount()
    for path in ("../x", "/etc/passwd", "a/../../x"):
        done = mountctl("pin", site.point, path)
        assert done.returncode == 2
        assert "not below" in one_line(done)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--policy", "x"), "no '=ENGINE'"),
        (("--policy", "x=warp"), "kernel, pool, buffered or pinned"),
        (("--policy", "a//b=pool"), "empty component"),
        (("--pin", "[a"), "'['"),
        (("--pin-size", "1"), "less than the 4K"),
    ],
)
def test_wrong_usage(mountctl: Run, words: tuple[str, ...], part: str) -> None:
    done = mountctl("mount", *words, "a", "b")
    assert done.returncode == 2
    assert part in one_line(done)
