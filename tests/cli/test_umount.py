"""umount: waits, names holders, cleans up after dead and hanging daemons."""

from __future__ import annotations

import errno
import mmap
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import zcfs.mount
from zcfs import control, mountinfo
from zcfs.errors import DaemonError
from zcfs.holders import holders
from zcfs.mount import unmount

from .conftest import MOUNTCTL, Site, daemon_pid, one_line

HOLD = "import sys; f = {}; print('held', flush=True); sys.stdin.read()"


@contextmanager
def holding(
    expression: str, *args: str, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process that holds what `expression` gives, until its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", HOLD.format(expression), *args],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "held\n"
            yield child
        finally:
            child.stdin.close()
            child.wait()


class Socket:
    """A mount's socket. The next mount may take its name, so its inode counts."""

    def __init__(self, mount: mountinfo.Mount) -> None:
        path = control.socket_path(mount)
        assert path is not None
        self.path, self.inode = path, path.stat().st_ino

    def is_there(self) -> bool:
        return self.path.exists() and self.path.stat().st_ino == self.inode


def test_ends_the_daemon_and_its_socket(mounted: Site) -> None:
    mount = mounted.mounted()
    pid, socket = daemon_pid(mount), Socket(mount)
    done = mounted.run("umount", mounted.point)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not mounted.is_mounted()
    assert not _runs(pid)
    assert not socket.is_there()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_waits_for_a_writer(mounted: Site) -> None:
    with (
        holding("open(sys.argv[1], 'w')", f"{mounted.point}/file") as writer,
        subprocess.Popen(
            [*MOUNTCTL, "umount", "--wait", "60", mounted.point], stderr=subprocess.PIPE, text=True
        ) as umount,
    ):
        assert umount.stderr is not None
        assert "waiting" in umount.stderr.readline()
        assert mounted.is_mounted()
        assert writer.stdin is not None
        writer.stdin.close()
        assert umount.wait(60) == 0, umount.stderr.read()


def test_names_the_writer(mounted: Site) -> None:
    with holding("open(sys.argv[1], 'w')", f"{mounted.point}/file") as child:
        done = mounted.run("umount", "--wait", "0", mounted.point)
        assert done.returncode == 1
        assert f"pid {child.pid} " in one_line(done)
        assert f"writes {mounted.point}/file" in done.stderr
        assert mounted.is_mounted()


def test_does_not_wait_for_a_directory(mounted: Site) -> None:
    with holding("0", cwd=mounted.point) as child:
        done = mounted.run("umount", "--wait", "60", mounted.point)
        assert done.returncode == 1
        assert f"pid {child.pid} " in one_line(done)
        assert f"works in {mounted.point}" in done.stderr


def test_lazy(mounted: Site) -> None:
    fd = os.pidfd_open(daemon_pid(mounted.mounted()))
    with holding("open(sys.argv[1])", f"{mounted.point}/file") as child:
        done = mounted.run("umount", "--lazy", mounted.point)
        assert done.returncode == 0
        assert f"pid {child.pid} " in done.stderr
        assert not mounted.is_mounted()
    assert _ended(fd)


def _ended(pidfd: int) -> bool:
    try:
        return bool(select.select([pidfd], [], [], 30)[0])
    finally:
        os.close(pidfd)


def test_a_dead_daemon(mounted: Site) -> None:
    mount = mounted.mounted()
    pid, socket = daemon_pid(mount), Socket(mount)
    fd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert _ended(fd)
    with pytest.raises(OSError) as raised:
        (mounted.point / "file").read_text()
    # ECANCELED: the kernel was still taking the daemon's ring apart
    assert raised.value.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED)
    assert "its daemon is dead" in one_line(mounted.run("status", mounted.point))
    rows = {row["mountpoint"]: row for row in mounted.json("list")["mounts"]}
    assert rows[str(mounted.point)]["state"] == "dead"
    assert "already mounted" in one_line(mounted.run("mount", mounted.source, mounted.point))
    done = mounted.run("umount", mounted.point)
    assert done.returncode == 0, done.stderr
    assert not mounted.is_mounted()
    assert not socket.is_there()
    mounted.mount()
    assert (mounted.point / "file").exists()


def test_a_hanging_daemon(mounted: Site) -> None:
    pid = daemon_pid(mounted.mounted())
    mounted.stop(pid)
    rows = {row["mountpoint"]: row for row in mounted.json("list")["mounts"]}
    assert rows[str(mounted.point)]["state"] == "hung"
    assert "does not answer" in one_line(mounted.run("status", mounted.point))
    done = mounted.run("umount", "--force", mounted.point)
    assert done.returncode == 0, done.stderr
    assert not mounted.is_mounted()
    assert not _runs(pid)


def test_force_frees_a_caller_that_waits(mounted: Site) -> None:
    mounted.stop(daemon_pid(mounted.mounted()))
    with subprocess.Popen(["ls", mounted.point / "nosuch"], stderr=subprocess.DEVNULL) as waiting:
        assert mounted.run("umount", "--force", mounted.point).returncode == 0
        assert waiting.wait(30) != 0


def test_umount_by_the_system(mounted: Site) -> None:
    """umount(8) or fusermount3 -u: the daemon ends by itself, and takes its socket away."""
    mount = mounted.mounted()
    fd, socket = os.pidfd_open(daemon_pid(mount)), Socket(mount)
    tool = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    subprocess.run([*tool, mounted.point], check=True)
    assert _ended(fd)
    assert not socket.is_there()


def test_the_old_daemon_leaves_the_next_mount_alone(mounted: Site) -> None:
    """Unmounted, and mounted again with the same device number, before the daemon notices."""
    pid = daemon_pid(mounted.mounted())
    fd = os.pidfd_open(pid)
    mounted.stop(pid)
    subprocess.run(["fusermount3", "-u", mounted.point], check=True)  # umount(8) would stat it
    new = mounted.mount()
    os.kill(pid, signal.SIGCONT)
    assert _ended(fd)
    assert mounted.mounted() == new
    assert (mounted.point / "file").exists()


def test_sigterm_unmounts(mounted: Site) -> None:
    pid = daemon_pid(mounted.mounted())
    fd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGTERM)
    assert _ended(fd)
    assert not mounted.is_mounted()


def test_a_daemon_that_takes_long_to_end(mounted: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for, and that is said; in the end it is an error that names it."""
    said: list[str] = []
    mount = mounted.mounted()
    with holding("0") as child:
        monkeypatch.setattr(zcfs.mount, "EXIT_NOTICE", 0.1)
        monkeypatch.setattr(zcfs.mount, "EXIT_PATIENCE", 0.2)
        monkeypatch.setattr(zcfs.mount, "_daemon_pid", lambda mount: child.pid)
        with pytest.raises(DaemonError, match=f"pid {child.pid}.* has not ended"):
            unmount(mount, notice=said.append)
    assert f"waiting for its daemon (pid {child.pid})" in said[0]
    assert not mounted.is_mounted()


def test_something_mounted_over_it(mounted: Site) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts a tmpfs: needs root")
    subprocess.run(["mount", "-t", "tmpfs", "none", mounted.point], check=True)
    try:
        done = mounted.run("umount", mounted.point)
        assert done.returncode == 1
        assert "no zcfs is mounted there" in one_line(done)
    finally:
        subprocess.run(["umount", mounted.point], check=True)


def test_holders_by_mapping(mounted: Site) -> None:
    code = "(lambda f: (f, __import__('mmap').mmap(f.fileno(), 4096)))(open(sys.argv[1], 'r+b'))"
    (mounted.source / "file").write_bytes(b"x" * mmap.PAGESIZE)
    with holding(code, f"{mounted.point}/file") as child:
        found = {holder.pid: holder for holder in holders(mounted.mounted().device)}
        assert child.pid in found
        assert found[child.pid].how == "writes"
        assert found[child.pid].path == f"{mounted.point}/file"


def test_locate_follows_links_to_the_mount(mounted: Site) -> None:
    link = mounted.base / "link"
    link.symlink_to(mounted.point)
    assert mountinfo.locate(link) == str(mounted.point)
    assert mounted.run("umount", link).returncode == 0
