"""Processes that open one file in every way at once: passthrough allows no mix, and nobody may notice."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from .harness import Mount
from .linux import Child, opened, wait_for
from .posix import pattern

BLOCK, WORKERS, SECONDS = 4096, 6, 2.0
PRIVATE = 16  # blocks at the start of the file that each belong to one worker
KEPT = 64 * BLOCK  # nobody truncates below this, unless everything is truncated


def read(path: Path, who: int, turn: int) -> None:
    with opened(path, os.O_RDONLY) as fd:
        assert len(os.pread(fd, BLOCK, 0)) == BLOCK


def write(path: Path, who: int, turn: int) -> None:
    with opened(path) as fd:
        data = pattern(BLOCK, who << 16 | turn)
        os.pwrite(fd, data, who * BLOCK)
        assert os.pread(fd, BLOCK, who * BLOCK) == data


def write_only(path: Path, who: int, turn: int) -> None:
    data = pattern(BLOCK, who << 16 | turn)
    with opened(path, os.O_WRONLY) as fd:
        os.pwrite(fd, data, who * BLOCK)
    with opened(path, os.O_RDONLY) as fd:
        assert os.pread(fd, BLOCK, who * BLOCK) == data


def direct(path: Path, who: int, turn: int) -> None:
    with opened(path, os.O_RDWR | os.O_DIRECT) as fd, mmap.mmap(-1, BLOCK) as buffer:
        data = pattern(BLOCK, who << 16 | turn)
        buffer[:] = data
        assert os.pwritev(fd, [buffer], who * BLOCK) == BLOCK
        buffer[:] = bytes(BLOCK)
        assert os.preadv(fd, [buffer], who * BLOCK) == BLOCK
        assert buffer[:] == data


def mapped(path: Path, who: int, turn: int) -> None:
    with opened(path) as fd, mmap.mmap(fd, PRIVATE * BLOCK) as memory:
        data = pattern(BLOCK, who << 16 | turn)
        memory[who * BLOCK : (who + 1) * BLOCK] = data
        assert os.pread(fd, BLOCK, who * BLOCK) == data


def append(path: Path, who: int, turn: int) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        assert os.write(fd, b"a" * 100) == 100


def truncate(path: Path, who: int, turn: int) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.ftruncate(fd, KEPT + turn % 5000)
    os.truncate(path, KEPT)


def stat_and_xattr(path: Path, who: int, turn: int) -> None:
    assert path.stat().st_size >= KEPT
    os.setxattr(path, f"user.w{who}", b"%d" % turn)


def hold(path: Path, who: int, turn: int) -> None:
    """Several handles at once, closed in another order."""
    modes = [os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_DIRECT]
    fds = [os.open(path, flags) for flags in modes]
    for fd in fds[::2] + fds[1::2]:
        os.close(fd)


WAYS = [read, write, write_only, direct, mapped, append, truncate, stat_and_xattr, hold]


def hammer(path: Path, who: int, ways: list[Callable[[Path, int, int], None]]) -> int:
    chosen, end, turn = random.Random(who), time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        chosen.choice(ways)(path, who, turn)
        turn += 1
    return turn


def open_files(mount: Mount) -> int:
    """The kernel tells of a close a moment later."""
    return sum(one["open_files"] for one in mount.status()["engines"].values())


def test_every_way_at_once(mount: Callable[..., Mount]) -> None:
    mounted = mount()
    path = mounted.path / "f"
    path.write_bytes(bytes(KEPT))
    workers = [Child(hammer, path, who, WAYS) for who in range(WORKERS)]
    turns = [worker.result() for worker in workers]
    assert min(turns) > 0
    assert (mounted.source / "f").read_bytes()[:KEPT] == path.read_bytes()[:KEPT]
    wait_for("all is released", lambda: open_files(mounted) == 0)


def empty(path: Path, who: int, turn: int) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_TRUNC | os.O_CREAT))


def fill(path: Path, who: int, turn: int) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, pattern(5000, turn), 0)
        os.pread(fd, 9000, 0)


def map_only(path: Path, who: int, turn: int) -> None:
    with opened(path, os.O_RDWR | os.O_CREAT) as fd, contextlib.suppress(ValueError):
        mmap.mmap(fd, BLOCK).close()


def replace(path: Path, who: int, turn: int) -> None:
    """A new inode under the name, as editors and databases do."""
    new = path.with_name(f"new{who}")
    new.write_bytes(b"new")
    os.rename(new, path)


def remove(path: Path, who: int, turn: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def link(path: Path, who: int, turn: int) -> None:
    other = path.with_name(f"link{who}")
    with contextlib.suppress(FileNotFoundError):
        os.link(path, other)
        with opened(other) as fd:
            os.pread(fd, 10, 0)
        os.unlink(other)


def direct_open(path: Path, who: int, turn: int) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CREAT))


def by_tmpfile(path: Path, who: int, turn: int) -> None:
    with opened(path.parent, os.O_TMPFILE | os.O_RDWR) as fd:
        os.pwrite(fd, b"x", 5000)


CHURN = [empty, fill, map_only, replace, remove, link, direct_open, by_tmpfile]


def churn(path: Path, who: int, ways: list[Callable[[Path, int, int], None]]) -> int:
    """As hammer; a name that somebody has just removed is no failure."""

    def careful(way: Callable[[Path, int, int], None]) -> Callable[[Path, int, int], None]:
        def run(path: Path, who: int, turn: int) -> None:
            try:
                way(path, who, turn)
            except OSError as error:
                assert error.errno in (errno.ENOENT, errno.ESTALE), f"{way.__name__}: {error}"

        return run

    return hammer(path, who, [careful(way) for way in ways])


def test_truncation_and_replacement_at_once(mount: Callable[..., Mount]) -> None:
    mounted = mount()
    path = mounted.path / "f"
    workers = [Child(churn, path, who, CHURN) for who in range(WORKERS)]
    assert min(worker.result() for worker in workers) > 0
    fill(path, 0, 0)
    assert path.read_bytes() == (mounted.source / "f").read_bytes()


def test_mount_and_source_at_once(mount: Callable[..., Mount]) -> None:
    """The same from both sides: attributes and caches are stale all the time, errors are none."""
    mounted = mount()
    sides = [mounted.path / "f", mounted.source / "f"]
    workers = [Child(churn, sides[who % 2], who, CHURN) for who in range(4)]
    assert min(worker.result() for worker in workers) > 0


def test_many_files_at_once(mount: Callable[..., Mount]) -> None:
    """Each worker cycles through files that the others have open too."""
    mounted = mount()
    for at in range(50):
        (mounted.path / f"f{at}").write_bytes(bytes(KEPT))

    def work(who: int) -> int:
        chosen, end, turns = random.Random(who), time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            path = mounted.path / f"f{chosen.randrange(50)}"
            chosen.choice([read, write, direct, mapped, append, hold])(path, who, turns)
            turns += 1
        return turns

    assert min(worker.result() for worker in [Child(work, who) for who in range(4)]) > 0
    wait_for("all is released", lambda: mounted.status()["backing_ids"] == 0)
