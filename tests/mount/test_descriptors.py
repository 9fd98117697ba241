"""A tree of many files under a small limit of descriptors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from .harness import Mode, Mount
from .linux import opened, wait_for

LIMITED = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh"]
DIRECTORIES, FILES = 60, 50


def fill(source: Path) -> None:
    for at in range(DIRECTORIES):
        (source / f"d{at}").mkdir()
        for number in range(FILES):
            (source / f"d{at}" / f"f{number}").write_bytes(b"%d.%d" % (at, number))


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_tree_larger_than_the_limit(mount: Callable[..., Mount]) -> None:
    """Walked, read and changed; all of it stays known to the kernel meanwhile."""
    mounted = mount(wrapper=LIMITED)
    fill(mounted.source)
    seen = 0
    for directory, _, files in os.walk(mounted.path):
        for name in files:
            path = Path(directory, name)
            assert path.stat().st_size == len(path.read_bytes())
            seen += 1
    assert seen == DIRECTORIES * FILES
    assert mounted.status()["inodes"] > seen
    assert open_descriptors(mounted.pid) <= 256
    for at in range(DIRECTORIES):
        os.rename(mounted.path / f"d{at}", mounted.path / f"e{at}")
        (mounted.path / f"e{at}" / "f0").write_bytes(b"changed")
    assert (mounted.source / "e7" / "f0").read_bytes() == b"changed"


def test_directories_held_open(mount: Callable[..., Mount]) -> None:
    """More directories in use by applications than the daemon can have open."""
    mounted = mount(wrapper=LIMITED)
    for at in range(400):
        (mounted.source / f"d{at}").mkdir()
        (mounted.source / f"d{at}" / "f").write_bytes(b"%d" % at)
    with contextlib.ExitStack() as stack:
        paths = [
            stack.enter_context(opened(mounted.path / f"d{at}", os.O_PATH)) for at in range(400)
        ]
        for at, fd in enumerate(paths):
            with opened(f"/proc/self/fd/{fd}/f", os.O_RDONLY) as file:
                assert os.read(file, 9) == b"%d" % at


def test_too_many_open_files(mount: Callable[..., Mount], mode: Mode) -> None:
    """Beyond the limit an open says EMFILE or ENFILE; nothing that is open is harmed."""
    mounted = mount(wrapper=LIMITED)
    for at in range(600):
        (mounted.source / f"f{at}").write_bytes(b"%d" % at)
    fds = []
    try:
        for at in range(600):
            try:
                fds.append(os.open(mounted.path / f"f{at}", os.O_RDWR))
            except OSError as error:
                assert error.errno in (23, 24), error
                break
        assert len(fds) >= (40 if mode.engine == "pool" else 100)  # three for each
        for at, fd in enumerate(fds):
            os.pwrite(fd, b"!", 0)
            assert os.pread(fd, 1, 0) == b"!"
        os.stat(mounted.path / "f599")
        assert mounted.stats()["requests"]
        assert len(os.listdir(mounted.path)) == 600 or len(fds) < 600
    finally:
        for fd in fds:
            os.close(fd)
    assert (mounted.path / "f599").read_bytes() == b"599"
    assert len(os.listdir(mounted.path)) == 600


def in_use(mount: Mount) -> tuple[int, int]:
    """Open files and backing ids; the kernel tells of a close a moment later."""
    status = mount.status()
    return sum(one["open_files"] for one in status["engines"].values()), status["backing_ids"]


def test_descriptors_are_given_back(mount: Callable[..., Mount]) -> None:
    mounted = mount()
    (mounted.path / "warm").write_bytes(b"x")
    before = open_descriptors(mounted.pid)
    for at in range(200):
        path = mounted.path / f"f{at}"
        path.write_bytes(b"x")
        with opened(path) as fd, opened(path, os.O_RDONLY):
            os.pwrite(fd, b"y", 0)
        path.unlink()
    wait_for("all is released", lambda: in_use(mounted) == (0, 0))
    assert open_descriptors(mounted.pid) < before + 50
