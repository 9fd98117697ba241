"""Which call moves which of a file's times."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

from ..linux import (
    AT_SYMLINK_NOFOLLOW,
    UTIME_NOW,
    UTIME_OMIT,
    fallocate,
    opened,
    statx,
    tick,
    utimensat,
)
from . import Tree, add, check, pattern

OLD = 10**18  # 2001, in nanoseconds


def times(path: Path | int) -> dict[str, int]:
    status = os.stat(path, follow_symlinks=False) if isinstance(path, Path) else os.fstat(path)
    return {"a": status.st_atime_ns, "m": status.st_mtime_ns, "c": status.st_ctime_ns}


def moved(path: Path, act: Callable[[], object]) -> str:
    """Which of a file's times an action moves forward, as letters of "amc"."""
    before = times(path)
    tick()
    act()
    after = times(path)
    for letter, moment in after.items():
        assert moment >= before[letter], f"{letter}time went back"
    return "".join(letter for letter in "amc" if after[letter] > before[letter])


def ancient(path: Path) -> Path:
    """Give a file old times, so that relatime lets a read move its atime."""
    os.utime(path, ns=(OLD, OLD + 1))
    return path


def put(path: Path, data: bytes) -> None:
    with opened(path) as fd:
        os.pwrite(fd, data, 0)


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "write": ("mc", lambda path: put(path, b"x")),
    "truncate_down": ("mc", lambda path: os.truncate(path, 10)),
    "truncate_up": ("mc", lambda path: os.truncate(path, 100000)),
    "truncate_same": ("mc", lambda path: os.truncate(path, 5000)),
    "open_truncate": ("mc", lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))),
    "chmod": ("c", lambda path: path.chmod(0o600)),
    "chown_to_nobody_else": ("c", lambda path: os.chown(path, os.geteuid(), -1)),
    "setxattr": ("c", lambda path: os.setxattr(path, "user.a", b"x")),
    "link": ("c", lambda path: os.link(path, f"{path}.link")),
    "read": ("a", lambda path: path.read_bytes()),
    "stat": ("", lambda path: path.stat()),
    "open": ("", lambda path: os.close(os.open(path, os.O_RDWR))),
}


def _moves(wanted: str, change: Callable[[Path], object]) -> Callable[[Tree], None]:
    def run(t: Tree) -> None:
        path = ancient(t.file("f", pattern(5000)))
        assert moved(path, lambda: change(path)) == wanted
        assert times(path) == times(t.source / "f")

    return run


for _name, (_wanted, _change) in CHANGES.items():
    add(f"times_after_{_name}", _moves(_wanted, _change))

DIRECTORY_CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda d: (d / "new").write_bytes(b""),
    "mkdir": lambda d: (d / "new").mkdir(),
    "symlink": lambda d: os.symlink("x", d / "new"),
    "mkfifo": lambda d: os.mkfifo(d / "new"),
    "link": lambda d: os.link(d / "f", d / "new"),
    "unlink": lambda d: (d / "f").unlink(),
    "rmdir": lambda d: (d / "sub").rmdir(),
    "rename": lambda d: (d / "f").rename(d / "g"),
    "rename_out": lambda d: (d / "f").rename(d.parent / "g"),
    "rename_in": lambda d: (d.parent / "outside").rename(d / "g"),
}


def _directory_moves(change: Callable[[Path], object]) -> Callable[[Tree], None]:
    def run(t: Tree) -> None:
        d = t.directory("d")
        (d / "f").write_bytes(b"")
        (d / "sub").mkdir()
        t.file("outside")
        assert moved(d, lambda: change(d)) == "mc"
        assert times(d) == times(t.source / "d")

    return run


for _name, _directory_change in DIRECTORY_CHANGES.items():
    add(f"directory_times_after_{_name}", _directory_moves(_directory_change))


@check()
def times_of_failed_calls(t: Tree) -> None:
    d = t.directory("d")
    (d / "f").write_bytes(b"")

    def act() -> None:
        for call in (os.mkdir, os.rmdir):
            try:
                call(d / "f")
            except OSError:
                continue
            raise AssertionError

    assert moved(d, act) == ""


@check()
def directory_atime_after_listing(t: Tree) -> None:
    d = ancient(t.directory("d"))
    assert moved(d, lambda: os.listdir(d)) == "a"


@check()
def symlink_atime_after_following(t: Tree) -> None:
    """A followed link's target may come from a cache; readlink in place always counts."""
    os.symlink("nowhere", t / "s")
    utimensat(t / "s", (5, 0), (6, 0), AT_SYMLINK_NOFOLLOW)
    got = moved(t / "s", lambda: os.readlink(t / "s"))
    assert got == "a" or (got == "" and t.mirrored)


@check()
def ctime_after_rename(t: Tree) -> None:
    path = ancient(t.file("f"))
    before = times(path)
    tick()
    path.rename(t / "g")
    after = times(t / "g")
    assert after["c"] > before["c"]
    assert (after["a"], after["m"]) == (before["a"], before["m"])


@check()
def ctime_after_rename_seen_by_open_file(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        before = times(fd)["c"]
        tick()
        path.rename(t / "g")
        assert times(fd)["c"] > before


@check()
def ctime_of_directory_after_rename(t: Tree) -> None:
    d = t.directory("d")
    before = times(d)
    tick()
    d.rename(t / "e")
    assert times(t / "e")["c"] > before["c"]
    assert times(t / "e")["m"] == before["m"]


@check()
def ctime_of_other_names_after_link_and_unlink(t: Tree) -> None:
    a = t.file("a")
    assert moved(a, lambda: os.link(a, t / "b")) == "c"
    assert moved(a, lambda: (t / "b").unlink()) == "c"
    with opened(a) as fd:
        before = times(fd)["c"]
        tick()
        a.unlink()
        assert times(fd)["c"] > before


@check()
def ctime_of_replaced_file(t: Tree) -> None:
    a, b = t.file("a"), t.file("b")
    with opened(b) as fd:
        before = times(fd)["c"]
        tick()
        a.rename(b)
        assert times(fd)["c"] > before


@check()
def times_after_small_write_to_open_file(t: Tree) -> None:
    path = t.file("f", b"data")
    with opened(path) as fd:
        for _ in range(3):
            assert moved(path, lambda: os.pwrite(fd, b"x", 0)) == "mc"
            assert times(fd) == times(path) == times(t.source / "f")


@check()
def times_after_fallocate(t: Tree) -> None:
    path = t.file("f", b"data")
    with opened(path) as fd:
        assert moved(path, lambda: fallocate(fd, 0, 0, 100000)) == "mc"


@check()
def times_after_copy_file_range(t: Tree) -> None:
    a, b = t.file("a", pattern(5000)), t.file("b")
    with opened(a) as source, opened(b) as target:
        assert moved(b, lambda: os.copy_file_range(source, target, 5000)) == "mc"


@check()
def times_after_mapped_write_and_msync(t: Tree) -> None:
    path = t.file("f", bytes(8192))
    with opened(path) as fd, mmap.mmap(fd, 8192) as memory:

        def act(at: int) -> None:
            memory[at : at + 4] = b"data"
            memory.flush()

        for at in (4096, 0, 4096):
            assert moved(path, lambda at=at: act(at)).endswith("mc")
        assert times(fd) == times(path)
    assert times(path) == times(t.source / "f")


@check()
def times_after_mapped_write_and_close(t: Tree) -> None:
    path = t.file("f", bytes(8192))

    def act() -> None:
        with opened(path) as fd, mmap.mmap(fd, 8192) as memory:
            memory[4096:4100] = b"data"

    for _ in range(2):
        assert moved(path, act).endswith("mc")  # making a mapping may count as a read


@check()
def times_after_mapped_write_and_fsync(t: Tree) -> None:
    path = t.file("f", bytes(8192))
    with opened(path) as fd, mmap.mmap(fd, 8192) as memory:

        def act() -> None:
            memory[0:4] = b"data"
            os.fsync(fd)

        assert moved(path, act).endswith("mc")


@check()
def times_after_mapped_write_beside_a_cached_stat(t: Tree) -> None:
    """Another process looks at the file all the time: its look must not be the last word."""
    path = t.file("f", bytes(8192))
    with opened(path) as fd, mmap.mmap(fd, 8192) as memory:
        for turn in range(5):
            before = times(path)
            assert times(path) == before
            tick()
            memory[turn] = 1
            memory.flush()
            assert times(path)["m"] > before["m"]
            assert times(path)["c"] > before["c"]


@check()
def utimensat_nanoseconds(t: Tree) -> None:
    path = t.file("f")
    for seconds in (0, 1, 10**9, 2**31 - 1, 2**31, 2**33):
        utimensat(path, (seconds, 123456789), (seconds + 1, 987654321))
        got = times(path)
        assert got["a"] == seconds * 10**9 + 123456789
        assert got["m"] == (seconds + 1) * 10**9 + 987654321
    assert times(path) == times(t.source / "f")


@check()
def utimensat_before_1970(t: Tree) -> None:
    path = t.file("f")
    utimensat(path, (-1000, 5), (-1, 999999999))
    assert times(path)["a"] == -1000 * 10**9 + 5
    assert times(path)["m"] == -1


@check()
def utimensat_now(t: Tree) -> None:
    path = ancient(t.file("f"))
    utimensat(path, (0, UTIME_NOW), (0, UTIME_NOW))
    got = times(path)
    assert got["a"] > OLD and got["m"] > OLD
    assert abs(got["a"] - got["m"]) < 10**9


@check()
def utimensat_omit(t: Tree) -> None:
    path = ancient(t.file("f"))
    utimensat(path, (0, UTIME_OMIT), (77, 5))
    assert (times(path)["a"], times(path)["m"]) == (OLD, 77 * 10**9 + 5)
    utimensat(path, (88, 5), (0, UTIME_OMIT))
    assert (times(path)["a"], times(path)["m"]) == (88 * 10**9 + 5, 77 * 10**9 + 5)
    utimensat(path, (0, UTIME_NOW), (0, UTIME_OMIT))
    assert times(path)["m"] == 77 * 10**9 + 5
    before = times(path)
    utimensat(path, (0, UTIME_OMIT), (0, UTIME_OMIT))
    assert times(path) == before


@check()
def utimensat_on_symlink(t: Tree) -> None:
    path = ancient(t.file("f"))
    os.symlink("f", t / "s")
    utimensat(t / "s", (5, 6), (7, 8), AT_SYMLINK_NOFOLLOW)
    assert times(path)["m"] == OLD + 1
    assert (times(t / "s")["a"], times(t / "s")["m"]) == (5 * 10**9 + 6, 7 * 10**9 + 8)


@check()
def utimensat_on_open_file(t: Tree) -> None:
    path = t.file("f", b"data")
    with opened(path) as fd:
        os.pwrite(fd, b"more", 4)
        os.utime(fd, ns=(OLD, OLD + 5))
        assert times(fd)["m"] == OLD + 5
    assert times(path)["m"] == OLD + 5, "a write before the utime counted after it"
    assert times(t.source / "f")["m"] == OLD + 5


@check()
def utimensat_on_mapped_file(t: Tree) -> None:
    path = t.file("f", bytes(4096))
    with opened(path) as fd, mmap.mmap(fd, 4096) as memory:
        memory[0] = 1
        memory.flush()
        os.utime(fd, ns=(OLD, OLD + 5))
    assert times(path)["m"] == OLD + 5


@check()
def birth_time(t: Tree) -> None:
    path = t.file("f")
    born = statx(path).btime
    assert born and born == statx(t.source / "f").btime
    ancient(path)
    path.write_bytes(b"x")
    path.rename(t / "g")
    assert statx(t / "g").btime == born
    assert statx(t.path).btime == statx(t.source).btime


@check()
def statx_equals_stat(t: Tree) -> None:
    path = t.file("f", pattern(12345))
    assert statx(path).size == 12345
    assert statx(path).ino == path.stat().st_ino
    assert path.stat().st_blocks == (t.source / "f").stat().st_blocks


@check()
def file_times_are_near_the_clock(t: Tree) -> None:
    import time

    before = time.time_ns() - 10**9
    path = t.file("f", b"x")
    assert all(before < moment < time.time_ns() + 10**9 for moment in times(path).values())
