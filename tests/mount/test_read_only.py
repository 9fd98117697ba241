"""--read-only writes nothing to the source, access times included; and sources that are read-only."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .harness import Mount, umount_when_free
from .linux import PUNCH_HOLE, Child, can_lock, fallocate, get_flags, opened, set_flags
from .posix import each_fails, pattern

OLD = (10**9, 10**9 + 1)  # seconds; relatime would move the first at every read


def fill(source: Path) -> None:
    (source / "d").mkdir()
    (source / "f").write_bytes(pattern(100000))
    (source / "suid").write_bytes(b"x")
    os.chmod(source / "suid", 0o4755)
    os.symlink("f", source / "s")
    os.mkfifo(source / "p")
    os.setxattr(source / "f", "user.a", b"x")
    for name in ("d", "f", "suid", "s", "p", "."):
        os.utime(source / name, OLD, follow_symlinks=False)


def snapshot(source: Path) -> list[Any]:
    """Everything that a read could change."""
    found = []
    for path in [source, *sorted(source.rglob("*"))]:
        status = path.lstat()
        times = status.st_mtime_ns, status.st_ctime_ns
        if os.geteuid() == 0:  # nobody else can keep reads from counting
            times = status.st_atime_ns, *times
        found.append((path, status.st_mode, status.st_ino, status.st_nlink, status.st_size, times))
    return found


def read_all(root: Path) -> None:
    assert sorted(os.listdir(root)) == ["d", "f", "p", "s", "suid"]
    assert os.listdir(root / "d") == []
    assert (root / "f").read_bytes() == (root / "s").read_bytes() == pattern(100000)
    assert os.readlink(root / "s") == "f"
    assert os.getxattr(root / "f", "user.a") == b"x"
    with opened(root / "f", os.O_RDONLY) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
        assert memory[:] == pattern(100000)
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 100000
        os.fsync(fd)
        get_flags(fd)
        fcntl.flock(fd, fcntl.LOCK_SH)
        assert can_lock(fd, fcntl.F_RDLCK)
    with opened(root / "f", os.O_RDONLY | os.O_DIRECT) as fd, mmap.mmap(-1, 4096) as buffer:
        assert os.preadv(fd, [buffer], 4096) == 4096
        assert buffer[:] == pattern(100000)[4096:8192]


def refusals(root: Path) -> dict[str, Callable[[], object]]:
    def with_fd(change: Callable[[int], object]) -> object:
        with opened(root / "f", os.O_RDONLY) as fd:
            return change(fd)

    return {
        "open_write": lambda: os.open(root / "f", os.O_RDWR),
        "open_truncate": lambda: os.open(root / "f", os.O_WRONLY | os.O_TRUNC),
        "create": lambda: os.open(root / "new", os.O_CREAT | os.O_WRONLY),
        "tmpfile": lambda: os.open(root, os.O_TMPFILE | os.O_RDWR),
        "mkdir": lambda: os.mkdir(root / "new"),
        "mkfifo": lambda: os.mkfifo(root / "new"),
        "symlink": lambda: os.symlink("x", root / "new"),
        "link": lambda: os.link(root / "f", root / "new"),
        "unlink": lambda: os.unlink(root / "f"),
        "rmdir": lambda: os.rmdir(root / "d"),
        "rename": lambda: os.rename(root / "f", root / "new"),
        "truncate": lambda: os.truncate(root / "f", 0),
        "chmod": lambda: os.chmod(root / "f", 0o777),
        "chown": lambda: os.chown(root / "f", os.geteuid(), -1),
        "utime": lambda: os.utime(root / "f"),
        "setxattr": lambda: os.setxattr(root / "f", "user.b", b"x"),
        "removexattr": lambda: os.removexattr(root / "f", "user.a"),
        "setflags": lambda: with_fd(lambda fd: set_flags(fd, get_flags(fd) | 0x40)),
    }


def test_read_only_mount(mount: Callable[..., Mount]) -> None:
    mounted = mount("--read-only")
    fill(mounted.source)
    before = snapshot(mounted.source)
    for _ in range(2):
        read_all(mounted.path)
    each_fails(errno.EROFS, refusals(mounted.path))
    with opened(mounted.path / "f", os.O_RDONLY) as fd, pytest.raises(OSError):
        fallocate(fd, PUNCH_HOLE, 0, 10)
    with opened(mounted.path / "f", os.O_RDONLY) as fd, pytest.raises(OSError):
        mmap.mmap(fd, 4096)
    assert mounted.status()["read_only"] is True
    assert not os.access(mounted.path / "f", os.W_OK)
    assert snapshot(mounted.source) == before
    assert mounted.close() == []
    assert snapshot(mounted.source) == before


def test_read_only_by_mount_option(mount: Callable[..., Mount]) -> None:
    mounted = mount("-o", "ro")
    fill(mounted.source)
    before = snapshot(mounted.source)
    read_all(mounted.path)
    each_fails(errno.EROFS, refusals(mounted.path))
    assert snapshot(mounted.source) == before


def test_read_only_mount_shows_changes_of_the_source(mount: Callable[..., Mount]) -> None:
    mounted = mount("--read-only")
    (mounted.source / "f").write_bytes(b"one")
    assert (mounted.path / "f").read_bytes() == b"one"
    (mounted.source / "f").write_bytes(b"three")
    assert (mounted.path / "f").read_bytes() == b"three"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_source_on_a_read_only_mount(mount: Callable[..., Mount], new_directory: Any) -> None:
    """A read-write mount of it: every change is EROFS, and nothing is an I/O error."""
    base = new_directory("read-only")
    (base / "real").mkdir()
    (base / "bound").mkdir()
    fill(base / "real")
    subprocess.run(["mount", "--bind", base / "real", base / "bound"], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro,noatime", base / "bound"], check=True)
    try:
        mounted = mount(source=base / "bound")
        mounted.expect_log("read-only")
        read_all(mounted.path)
        wrong = refusals(mounted.path)
        each_fails(errno.EROFS, wrong)
        assert mounted.close() == []
    finally:
        umount_when_free(str(base / "bound"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_remounted_read_only_and_back(mount: Callable[..., Mount]) -> None:
    mounted = mount()
    (mounted.path / "f").write_bytes(b"x")
    with opened(mounted.path / "f") as fd:
        done = subprocess.run(
            ["mount", "-i", "-o", "remount,ro", mounted.path], capture_output=True, text=True
        )
        assert done.returncode, "remounted read-only although a file is open for writing"
        os.pwrite(fd, b"y", 0)
    subprocess.run(["mount", "-i", "-o", "remount,ro", mounted.path], check=True)
    with pytest.raises(OSError) as raised:
        (mounted.path / "g").write_bytes(b"x")
    assert raised.value.errno == errno.EROFS
    assert (mounted.path / "f").read_bytes() == b"y"
    subprocess.run(["mount", "-i", "-o", "remount,rw", mounted.path], check=True)
    (mounted.path / "g").write_bytes(b"x")
    assert Child((mounted.path / "g").read_bytes).result() == b"x"
