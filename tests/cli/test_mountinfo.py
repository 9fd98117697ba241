"""Reading /proc/self/mountinfo."""

from __future__ import annotations

from pathlib import Path

import pytest

from zcfs import control, mountinfo

LINE = (
    "91 27 0:45 / /mnt/my\\040data rw,nosuid,nodev shared:5 master:2 - fuse.zcfs "
    "/srv/a\\134b rw,user_id=1000,group_id=0,allow_other\n"
)


def test_parse_line() -> None:
    mount = mountinfo.parse_line(LINE)
    assert mount.id == 91
    assert (mount.device, mount.minor) == ("0:45", 45)
    assert mount.mountpoint == "/mnt/my data"
    assert mount.options == ("rw", "nosuid", "nodev")
    assert (mount.fstype, mount.source) == ("fuse.zcfs", "/srv/a\\b")
    assert mount.user_id == 1000


def test_a_line_without_a_source() -> None:
    mount = mountinfo.parse_line("91 27 0:45 / /mnt rw - fuse  rw\n")
    assert (mount.fstype, mount.source, mount.user_id) == ("fuse", "", 0)


def test_every_line_of_this_machine() -> None:
    assert all(mount.mountpoint.startswith("/") for mount in mountinfo.read())
    root = mountinfo.at("/")
    assert root is not None


def test_locate(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("dir")
    real = tmp_path.resolve()
    assert mountinfo.locate(tmp_path / "link") == str(real / "dir")
    assert mountinfo.locate(tmp_path / "missing") == str(real / "missing")
    assert mountinfo.locate("/") == "/"


def test_runtime_dirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/mine")
    assert control.runtime_dirs(0) == [Path("/run/zcfs")]
    assert control.runtime_dirs(1000)[0] == Path("/run/mine/zcfs")
    assert Path("/tmp/zcfs-1001") in control.runtime_dirs(1001)
    assert Path("/run/mine/zcfs") not in control.runtime_dirs(1001)
