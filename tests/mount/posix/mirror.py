"""What holds for a mount beside its source: coherence both ways, and the reserved name `.zcfs`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from ..linux import RENAME_EXCHANGE, Child, opened, renameat2, tick, wait_for
from . import Tree, add, check, fails, pattern

SOON = 5.0  # seconds within which names changed in place must be seen


@check(mount_only=True)
def change_in_place_is_seen_at_next_open(t: Tree) -> None:
    path = t.file("f", b"old")
    assert path.read_bytes() == b"old"
    for turn in range(10):
        tick()
        data = pattern(5000 * (turn % 3 + 1), turn)
        (t.source / "f").write_bytes(data)
        assert path.read_bytes() == data


@check(mount_only=True)
def same_size_change_in_place_is_seen_at_next_open(t: Tree) -> None:
    path = t.file("f", pattern(20000))
    for turn in range(10):
        assert len(path.read_bytes()) == 20000
        tick()
        with opened(t.source / "f") as fd:
            os.pwrite(fd, pattern(20000, turn), 0)
        assert path.read_bytes() == pattern(20000, turn)


@check(mount_only=True)
def new_size_in_place_is_seen_by_fstat_after_open(t: Tree) -> None:
    path = t.file("f", b"1")
    assert path.stat().st_size == 1
    (t.source / "f").write_bytes(b"12345")
    with opened(path) as fd:
        assert os.fstat(fd).st_size == 5
        assert os.lseek(fd, 0, os.SEEK_END) == 5


@check(mount_only=True)
def file_made_in_place_appears(t: Tree) -> None:
    with fails(errno.ENOENT):
        os.stat(t / "f")
    (t.source / "f").write_bytes(b"x")
    wait_for("the new file is seen", (t / "f").exists, SOON)
    assert (t / "f").read_bytes() == b"x"


@check(mount_only=True)
def file_removed_in_place_disappears(t: Tree) -> None:
    t.file("f")
    (t.source / "f").unlink()
    wait_for("the file is gone", lambda: not (t / "f").exists(), SOON)
    with fails(errno.ENOENT):
        os.open(t / "f", os.O_RDONLY)


@check(mount_only=True)
def file_replaced_in_place(t: Tree) -> None:
    path = t.file("f", b"old")
    with opened(path) as old:
        (t.source / "g").write_bytes(b"new")
        os.rename(t.source / "g", t.source / "f")
        assert os.pread(old, 9, 0) == b"old"
        wait_for("the new file is seen", lambda: path.read_bytes() == b"new", SOON)
        os.pwrite(old, b"OLD", 0)
        assert path.read_bytes() == b"new"


@check(mount_only=True)
def directory_moved_in_place_keeps_its_handle(t: Tree) -> None:
    d = t.directory("d")
    (d / "f").write_bytes(b"x")
    with opened(d, os.O_RDONLY) as fd:
        os.rename(t.source / "d", t.source / "e")
        with opened(f"/proc/self/fd/{fd}/f") as file:
            assert os.read(file, 9) == b"x"
        os.close(os.open("g", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    assert sorted(os.listdir(t.source / "e")) == ["f", "g"]


@check(mount_only=True)
def file_becomes_directory_in_place(t: Tree) -> None:
    t.file("f", b"x")
    (t.source / "f").unlink()
    (t.source / "f").mkdir()
    (t.source / "f" / "inner").write_bytes(b"y")
    wait_for("the directory is seen", (t / "f").is_dir, SOON)
    assert (t / "f" / "inner").read_bytes() == b"y"


@check(mount_only=True)
def parent_swapped_for_a_symlink_in_place(t: Tree) -> None:
    """A directory that becomes a link out of the source leads the caller, never the daemon."""
    d = t.directory("d")
    (d / "passwd").write_bytes(b"mine")
    with opened(d, os.O_RDONLY) as fd:
        os.rename(t.source / "d", t.source / "moved")
        os.symlink("/etc", t.source / "d")
        assert os.stat("passwd", dir_fd=fd).st_size == 4
        with opened(f"/proc/self/fd/{fd}/passwd") as file:
            assert os.read(file, 99) == b"mine"


@check(mount_only=True)
def write_on_mount_is_seen_in_place_at_once(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd, opened(t.source / "f", os.O_RDONLY) as there:
        for turn in range(50):
            os.pwrite(fd, pattern(100, turn), turn * 100)
            assert os.pread(there, 100, turn * 100) == pattern(100, turn)
        os.ftruncate(fd, 10)
        assert os.fstat(there).st_size == 10


@check(mount_only=True)
def names_on_mount_are_seen_in_place_at_once(t: Tree) -> None:
    t.file("f")
    assert (t.source / "f").exists()
    (t / "f").rename(t / "g")
    assert os.listdir(t.source) == ["g"]
    (t / "g").unlink()
    assert os.listdir(t.source) == []


@check(mount_only=True)
def race_of_creation_in_place_and_on_mount(t: Tree) -> None:
    def make(side: object) -> int:
        won = 0
        for at in range(100):
            try:
                os.close(os.open(f"{side}/f{at}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                won += 1
            except FileExistsError:
                pass
        return won

    workers = [Child(make, t.path), Child(make, t.source)]
    assert sum(worker.result() for worker in workers) == 100
    assert len(os.listdir(t.path)) == 100


@check(mount_only=True)
def nothing_is_left_in_the_source(t: Tree) -> None:
    """No helper files: what was made is there, and nothing else."""
    with opened(t.file("f")) as fd:
        os.unlink(t / "f")
        assert os.listdir(t.source) == []
        os.write(fd, b"x")
    assert os.listdir(t.source) == []


RESERVED: dict[str, Callable[[Tree], object]] = {
    "mkdir": lambda t: os.mkdir(t.root / ".zcfs"),
    "mknod": lambda t: os.mknod(t.root / ".zcfs"),
    "create": lambda t: os.open(t.root / ".zcfs", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    "symlink": lambda t: os.symlink("x", t.root / ".zcfs"),
    "link": lambda t: os.link(t.file("f"), t.root / ".zcfs"),
    "rename_to": lambda t: os.rename(t.file("f"), t.root / ".zcfs"),
    "rename_directory_to": lambda t: os.rename(t.directory("d"), t.root / ".zcfs"),
    "rename_from": lambda t: os.rename(t.root / ".zcfs", t / "x"),
    "exchange": lambda t: renameat2(t.file("f"), t.root / ".zcfs", RENAME_EXCHANGE),
    "rmdir": lambda t: os.rmdir(t.root / ".zcfs"),
    "unlink": lambda t: os.unlink(t.root / ".zcfs"),
}


def _reserved(act: Callable[[Tree], object]) -> Callable[[Tree], None]:
    """The kernel itself answers some cases before it asks: EEXIST, EISDIR, EXDEV, ENOENT."""

    def run(t: Tree) -> None:
        codes = [errno.EPERM]
        if t.computed:
            codes += [errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EXDEV]
        else:
            codes += [errno.ENOENT]
        with fails(*codes):
            act(t)
        assert not (t.source.parent / ".zcfs").exists()
        assert not os.path.lexists(t.source.parent.parent / ".zcfs")

    return run


for _name, _act in RESERVED.items():
    add(f"reserved_name_{_name}", _reserved(_act), mount_only=True)


@check(mount_only=True)
def reserved_name_is_not_listed(t: Tree) -> None:
    assert ".zcfs" not in os.listdir(t.root)


@check(mount_only=True)
def reserved_name_is_free_elsewhere(t: Tree) -> None:
    (t / ".zcfs").mkdir()
    (t / ".zcfs" / "version").write_bytes(b"mine")
    assert (t.source / ".zcfs" / "version").read_bytes() == b"mine"
    assert os.listdir(t.path) == [".zcfs"]
    (t / ".zcfs").rename(t / "other")


@check(mount_only=True)
def names_like_the_reserved_one(t: Tree) -> None:
    for name in (".zcfs2", ".zcf", "zcfs", ".ZCFS"):
        (t.root / name).write_bytes(b"x")
        assert name in os.listdir(t.root)
        (t.root / name).unlink()
