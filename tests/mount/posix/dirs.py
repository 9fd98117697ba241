"""Reading directories."""

from __future__ import annotations

import contextlib
import os
import shutil

from ..linux import Child, Entry, getdents, getdents_all, opened
from . import Tree, check


def names_of(entries: list[Entry]) -> list[str]:
    return [entry.name for entry in entries if entry.name not in (".", "..")]


def fill(t: Tree, count: int) -> set[str]:
    names = {f"file-{at:05}" for at in range(count)}
    for name in names:
        os.close(os.open(t / name, os.O_CREAT | os.O_WRONLY))
    return names


@check()
def listing_of_empty_directory(t: Tree) -> None:
    with opened(t.path, os.O_RDONLY) as fd:
        assert sorted(entry.name for entry in getdents_all(fd)) == [".", ".."]


@check()
def listing_of_many(t: Tree) -> None:
    names = fill(t, 2000)
    with opened(t.path, os.O_RDONLY) as fd:
        got = names_of(getdents_all(fd))
    assert len(got) == 2000
    assert set(got) == names


@check()
def listing_with_small_buffers(t: Tree) -> None:
    names = fill(t, 100)
    for size in (64, 100, 512, 4096):
        with opened(t.path, os.O_RDONLY) as fd:
            got = names_of(getdents_all(fd, size))
        assert len(got) == 100
        assert set(got) == names


@check()
def listing_of_long_names(t: Tree) -> None:
    names = {f"{at:03}" + "n" * 252 for at in range(100)}
    for name in names:
        t.file(name)
    assert set(os.listdir(t.path)) == names


@check()
def listing_has_types_and_numbers(t: Tree) -> None:
    import socket

    t.file("file")
    t.directory("dir")
    os.symlink("x", t / "symlink")
    os.mkfifo(t / "fifo")
    with socket.socket(socket.AF_UNIX) as server, opened(t.path, os.O_RDONLY) as fd:
        server.bind(f"/proc/self/fd/{fd}/socket")
    with opened(t.path, os.O_RDONLY) as fd:
        entries = {entry.name: entry for entry in getdents_all(fd)}
    for name in ("file", "dir", "symlink", "fifo", "socket"):
        assert entries[name].kind == name
        assert entries[name].ino == os.lstat(t / name).st_ino
    assert entries["."].kind == entries[".."].kind == "dir"
    assert entries["."].ino == t.path.stat().st_ino
    assert entries[".."].ino == t.path.parent.stat().st_ino


@check()
def listing_twice(t: Tree) -> None:
    names = fill(t, 50)
    with opened(t.path, os.O_RDONLY) as fd:
        first = getdents_all(fd)
        assert getdents(fd) == []
        os.lseek(fd, 0, os.SEEK_SET)
        assert getdents_all(fd) == first
    assert set(names_of(first)) == names


@check()
def listing_from_remembered_offsets(t: Tree) -> None:
    """seekdir: every entry's offset leads to the entry after it."""
    fill(t, 300)
    with opened(t.path, os.O_RDONLY) as fd:
        entries = getdents_all(fd, 2048)
        for at in (0, 1, 2, 7, 100, 299, 300):
            os.lseek(fd, entries[at].offset, os.SEEK_SET)
            assert getdents_all(fd) == entries[at + 1 :]


@check()
def listing_offsets_hold_in_another_handle(t: Tree) -> None:
    fill(t, 100)
    with opened(t.path, os.O_RDONLY) as fd, opened(t.path, os.O_RDONLY) as other:
        entries = getdents_all(fd)
        os.lseek(other, entries[50].offset, os.SEEK_SET)
        assert getdents_all(other) == entries[51:]


@check()
def listing_while_removing(t: Tree) -> None:
    """rm -r: what was there at the start is listed once, although it vanishes meanwhile."""
    names = fill(t, 1000)
    seen: list[str] = []
    with opened(t.path, os.O_RDONLY) as fd:
        while entries := getdents(fd, 1024):
            for name in names_of(entries):
                seen.append(name)
                os.unlink(t / name)
    assert len(seen) == 1000
    assert set(seen) == names
    assert os.listdir(t.path) == []


@check()
def listing_while_adding(t: Tree) -> None:
    names = fill(t, 500)
    seen: list[str] = []
    added = 0
    with opened(t.path, os.O_RDONLY) as fd:
        while entries := getdents(fd, 1024):
            seen += names_of(entries)
            if added < 200:
                t.file(f"new-{added}")
                added += 1
    assert len(seen) == len(set(seen))
    assert names <= set(seen)


@check()
def listing_rewound_shows_changes(t: Tree) -> None:
    fill(t, 10)
    with opened(t.path, os.O_RDONLY) as fd:
        getdents_all(fd)
        t.file("new")
        os.unlink(t / "file-00000")
        os.lseek(fd, 0, os.SEEK_SET)
        got = set(names_of(getdents_all(fd)))
    assert "new" in got and "file-00000" not in got
    assert len(got) == 10


@check()
def listing_shows_changes_at_once(t: Tree) -> None:
    for turn in range(20):
        t.file(f"f{turn}")
        assert len(os.listdir(t.path)) == turn + 1
    for turn in range(20):
        os.unlink(t / f"f{turn}")
        assert len(os.listdir(t.path)) == 19 - turn


@check()
def listing_shows_changes_made_in_place(t: Tree) -> None:
    assert os.listdir(t.path) == []
    (t.source / "f").write_bytes(b"")
    assert os.listdir(t.path) == ["f"]
    (t.source / "f").unlink()
    assert os.listdir(t.path) == []


@check()
def listing_of_removed_directory(t: Tree) -> None:
    d = t.directory("d")
    with opened(d, os.O_RDONLY) as fd:
        d.rmdir()
        with contextlib.suppress(FileNotFoundError):
            assert names_of(getdents(fd)) == []


@check()
def listing_by_many(t: Tree) -> None:
    names = fill(t, 500)

    def work() -> bool:
        return all(set(os.listdir(t.path)) == names for _ in range(5))

    assert all(worker.result() for worker in [Child(work) for _ in range(4)])


@check()
def listing_beside_changes(t: Tree) -> None:
    """Names that are not touched are always listed, whatever goes on beside them."""
    kept = fill(t, 200)

    def churn() -> None:
        for turn in range(300):
            t.file(f"churn-{turn % 10}").rename(t / f"moved-{turn % 7}")

    worker = Child(churn)
    while not worker.finished():
        got = os.listdir(t.path)
        assert kept <= set(got)
        assert len(set(got) & kept) == sum(name in kept for name in got)
    worker.result()


@check()
def walk_and_remove_tree(t: Tree) -> None:
    for a in range(5):
        for b in range(5):
            os.makedirs(t / f"a{a}" / f"b{b}")
            (t / f"a{a}" / f"b{b}" / "f").write_bytes(b"x")
    assert sum(len(files) for _, _, files in os.walk(t.path)) == 25
    for a in range(5):
        shutil.rmtree(t / f"a{a}")
    assert os.listdir(t.source) == []


@check()
def scandir_and_stat(t: Tree) -> None:
    for at in range(200):
        t.file(f"f{at}", bytes(at))
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(t.path)}
    assert sizes == {f"f{at}": at for at in range(200)}
