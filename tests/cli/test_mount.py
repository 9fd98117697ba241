"""mount: it returns when the mount answers, or fails with one line and mounts nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zcfs import control, mountinfo

from .conftest import MOUNTCTL, Site, daemon_pid, one_line


def test_returns_when_it_answers_and_tells_where_zcfs_is(site: Site) -> None:
    done = site.run("mount", site.source, site.point)
    assert done.returncode == 0, done.stderr
    assert (site.point / "file").read_text() == "content\n"
    assert f"{site.point}/.zcfs" in done.stdout
    assert ".zcfs" not in os.listdir(site.point)


def test_relative_paths(site: Site) -> None:
    done = site.run("mount", "source", "point", cwd=site.base)
    assert done.returncode == 0, done.stderr
    assert site.mounted().source == str(site.source)


def test_path_with_a_space(site: Site) -> None:
    site.source.rename(site.base / "the source")
    point = site.base / "the point"
    point.mkdir()
    assert site.run("mount", site.base / "the source", point).returncode == 0
    assert (point / "file").exists()
    assert site.run("umount", point).returncode == 0


def test_names_that_begin_with_a_dash(site: Site) -> None:
    site.source.rename(site.base / "-source")
    done = site.run("mount", "--", "-source", "point", cwd=site.base)
    assert done.returncode == 0, done.stderr


def source_missing(site: Site) -> Path:
    (site.source / "file").unlink()
    site.source.rmdir()
    return site.source


def source_file(site: Site) -> Path:
    source_missing(site).write_text("")
    return site.source


def source_below(site: Site) -> Path:
    (site.point / "inner").mkdir()
    site.source.rename(site.point / "inner" / "source")
    site.source.symlink_to(site.point / "inner" / "source")
    return site.point / "inner" / "source"


def point_missing(site: Site) -> Path:
    site.point.rmdir()
    return site.point


def point_file(site: Site) -> Path:
    point_missing(site).write_text("")
    return site.point


def point_full(site: Site) -> Path:
    (site.point / "something").write_text("")
    return site.point


def point_taken(site: Site) -> Path:
    site.mount()
    return site.point


def mounts_below(base: Path) -> list[int]:
    return [m.id for m in mountinfo.read() if m.mountpoint.startswith(f"{base}/")]


@pytest.mark.parametrize(
    "spoil",
    [
        source_missing,
        source_file,
        source_below,
        point_missing,
        point_file,
        point_full,
        point_taken,
    ],
)
def test_bad_input(site: Site, spoil: object) -> None:
    assert callable(spoil)
    named = spoil(site)
    before = mounts_below(site.base)
    done = site.run("mount", site.source, site.point)
    assert done.returncode in (1, 2)
    assert str(named) in one_line(done)
    assert mounts_below(site.base) == before


def test_a_full_mount_point_is_allowed_by_nonempty(site: Site) -> None:
    point_full(site)
    site.mount("-o", "nonempty")
    assert (site.point / "file").exists()


def test_an_unknown_mount_option(site: Site) -> None:
    done = site.run("mount", "-o", "nosuchoption", site.source, site.point)
    assert done.returncode == 2
    assert one_line(done).startswith("mountctl: -o nosuchoption: unknown option")
    assert not site.is_mounted()


OPTIONS = ("nosuid", "nodev", "noexec", "noatime", "sync", "dirsync")


def test_options_of_mount8(site: Site) -> None:
    mount = site.mount("-o", ",".join(OPTIONS))
    assert set(OPTIONS) <= {*mount.options, *mount.super_options}


@pytest.mark.skipif(os.geteuid() != 0, reason="fusermount3 does not take these from a user")
def test_options_of_mount8_for_root(site: Site) -> None:
    mount = site.mount("-o", "strictatime,nodiratime,lazytime,nosymfollow")
    shown = {*mount.options, *mount.super_options}
    assert {"nodiratime", "lazytime", "nosymfollow"} <= shown
    assert "relatime" not in shown


def test_read_only(site: Site) -> None:
    site.mount("--read-only")
    with pytest.raises(OSError, match="Read-only"):
        (site.point / "new").write_text("")
    assert control.query(site.mounted(), "status")["read_only"] is True


def test_engine_and_transport_are_passed_on(site: Site) -> None:
    site.mount("--engine", "buffered", "--transport", "dev", "--threads", "3")
    status = control.query(site.mounted(), "status")
    assert (status["engine"], status["transport"], status["threads"]) == ("buffered", "dev", 3)


def test_log_file(site: Site) -> None:
    log = site.base / "log"
    site.mount("--log", str(log))
    assert log.exists()


def test_foreground_ends_with_ctrl_c(site: Site) -> None:
    with subprocess.Popen(
        [*MOUNTCTL, "mount", "--foreground", site.source, site.point], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert b"is mounted on" in child.stdout.readline()
        assert (site.point / "file").exists()
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 0
    assert not site.is_mounted()


def test_the_daemon_survives_its_terminal(site: Site) -> None:
    site.mount()
    pid = daemon_pid(site.mounted())
    assert os.getsid(pid) != os.getsid(0)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


def hide_dev_fuse(site: Site, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command where /dev has no fuse, in a mount namespace of its own."""
    dev = site.base / "dev"
    dev.mkdir()
    script = """
        mount -t tmpfs none "$0" && cp -a /dev/null /dev/zero /dev/urandom "$0" &&
        ln -s /proc/self/fd "$0/fd" && mount --move "$0" /dev && exec "$@" """
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script, dev, *command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="hides /dev/fuse in a mount namespace: needs root")
def test_without_dev_fuse(site: Site) -> None:
    done = hide_dev_fuse(site, *MOUNTCTL, "mount", site.source, site.point)
    assert done.returncode == 1
    assert "/dev/fuse" in one_line(done)
    assert not site.is_mounted()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")
def test_forbidden_dev_fuse(site: Site) -> None:
    """As nobody, where /dev/fuse is root's alone."""
    if in_roots_home():
        pytest.skip(f"{sys.executable} is out of reach for another user")
    os.chown(site.point, 65534, 65534)
    for place in (site.base.parent, site.base, site.source):
        place.chmod(0o755)
    if os.stat("/dev/fuse").st_mode & 0o006:
        pytest.skip("/dev/fuse is everybody's here")
    done = subprocess.run(
        [*MOUNTCTL, "mount", site.source, site.point], capture_output=True, text=True, check=False,
        user=65534, group=65534, extra_groups=[], cwd="/",
    )  # fmt: skip
    assert done.returncode == 1
    assert "/dev/fuse" in one_line(done)


def in_roots_home() -> bool:
    real = Path(sys.executable).resolve()
    return any(not parent.stat().st_mode & 0o001 for parent in real.parents)
