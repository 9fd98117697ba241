"""Names, links, renames, and files that live on without a name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..linux import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, link_fd, opened, renameat2
from . import Tree, check, fails, pattern


def ino(path: Path) -> int:
    return path.lstat().st_ino


@check()
def create_and_read(t: Tree) -> None:
    path = t.file("f", b"hello")
    assert path.read_bytes() == b"hello"
    assert (t.source / "f").read_bytes() == b"hello"


@check()
def name_of_255_bytes(t: Tree) -> None:
    path = t.file("n" * 255, b"x")
    assert path.read_bytes() == b"x"
    assert os.listdir(t.path) == ["n" * 255]


@check()
def name_of_256_bytes(t: Tree) -> None:
    long = t / ("n" * 256)
    for call in (os.stat, os.mkdir, os.unlink, os.rmdir, os.mkfifo):
        with fails(errno.ENAMETOOLONG):
            call(long)
    with fails(errno.ENAMETOOLONG):
        os.open(long, os.O_CREAT | os.O_WRONLY)
    for move in (os.rename, os.link, os.symlink):
        with fails(errno.ENAMETOOLONG):
            move(t.file("f"), long)


@check()
def name_of_any_bytes(t: Tree) -> None:
    every = bytes(value for value in range(1, 256) if value != ord("/"))
    names = [every[:200], every[200:], b" ", b"\\", b"\n", b"...", b"-", b"\xff\xfe", b".hidden"]
    for name in names:
        with opened(os.fsencode(t.path) + b"/" + name, os.O_CREAT | os.O_WRONLY):
            pass
    assert sorted(os.listdir(os.fsencode(t.path))) == sorted(names)
    for name in names:
        os.unlink(os.fsencode(t.path) + b"/" + name)


@check()
def names_are_not_folded(t: Tree) -> None:
    t.file("name", b"1")
    t.file("NAME", b"2")
    t.file("n\u00e4me", b"3")
    t.file("na\u0308me", b"4")
    assert len(os.listdir(t.path)) == 4


@check()
def trailing_slash(t: Tree) -> None:
    t.file("f")
    t.directory("d")
    assert os.stat(f"{t.path}/d/").st_ino == ino(t / "d")
    with fails(errno.ENOTDIR):
        os.stat(f"{t.path}/f/")
    os.mkdir(f"{t.path}/e/")
    os.rmdir(f"{t.path}/e/")


@check()
def dots_in_paths(t: Tree) -> None:
    t.directory("d")
    t.file("f", b"x")
    assert Path(f"{t.path}/d/./.././f").read_bytes() == b"x"
    assert os.stat(f"{t.path}/d/..").st_ino == ino(t.path)
    for dots, code in ((".", errno.EINVAL), ("..", errno.ENOTEMPTY)):
        with fails(code):
            os.rmdir(f"{t.path}/d/{dots}")


@check()
def path_beyond_path_max(t: Tree) -> None:
    name, depth = "d" * 250, 20
    fds = [os.open(t.path, os.O_RDONLY)]
    try:
        for _ in range(depth):
            os.mkdir(name, dir_fd=fds[-1])
            fds.append(os.open(name, os.O_RDONLY, dir_fd=fds[-1]))
        bottom = fds[-1]
        with os.fdopen(os.open("f", os.O_CREAT | os.O_RDWR, dir_fd=bottom), "w+b") as file:
            file.write(b"deep")
        os.link("f", "l", src_dir_fd=bottom, dst_dir_fd=bottom)
        os.rename("f", "g", src_dir_fd=bottom, dst_dir_fd=bottom)
        os.symlink("g", "s", dir_fd=bottom)
        os.mkfifo("p", dir_fd=bottom)
        os.chmod("g", 0o600, dir_fd=bottom)
        os.utime("g", (1, 1), dir_fd=bottom)
        with os.fdopen(os.open("g", os.O_RDWR, dir_fd=bottom), "r+b") as file:
            file.truncate(2)
        assert os.stat("s", dir_fd=bottom).st_size == 2
        assert sorted(os.listdir(bottom)) == ["g", "l", "p", "s"]
        os.rename("g", "up", src_dir_fd=bottom, dst_dir_fd=fds[1])
        for left in ("l", "p", "s"):
            os.unlink(left, dir_fd=bottom)
        os.unlink("up", dir_fd=fds[1])
        for level in range(depth, 0, -1):
            os.rmdir(name, dir_fd=fds[level - 1])
    finally:
        for fd in fds:
            os.close(fd)


@check()
def deep_getcwd(t: Tree) -> None:
    deep = t.path
    for level in range(60):
        deep = deep / f"level{level}"
        deep.mkdir()
    fd = os.open(deep, os.O_RDONLY)
    assert os.readlink(f"/proc/self/fd/{fd}") == str(deep)
    os.close(fd)


@check()
def hard_link_is_one_inode(t: Tree) -> None:
    a, b = t.file("a", b"one"), t / "b"
    os.link(a, b)
    assert ino(a) == ino(b)
    assert a.stat().st_nlink == b.stat().st_nlink == 2
    a.write_bytes(b"other")
    b.chmod(0o600)
    assert b.read_bytes() == b"other"
    assert a.stat() == b.stat()


@check()
def hard_link_made_in_place_is_one_inode(t: Tree) -> None:
    t.file("a", b"one")
    os.link(t.source / "a", t.source / "b")
    assert ino(t / "a") == ino(t / "b")
    with opened(t / "a") as a, opened(t / "b") as b:
        os.pwrite(a, b"two", 0)
        assert os.pread(b, 9, 0) == b"two"


@check()
def hard_link_survives_its_first_name(t: Tree) -> None:
    a, b = t.file("a", b"data"), t / "b"
    os.link(a, b)
    a.unlink()
    assert b.read_bytes() == b"data"
    assert b.stat().st_nlink == 1


@check()
def hard_link_to_symlink(t: Tree) -> None:
    os.symlink("target", t / "s")
    os.link(t / "s", t / "l", follow_symlinks=False)
    assert os.readlink(t / "l") == "target"
    assert ino(t / "s") == ino(t / "l")


@check()
def hard_link_into_other_directory(t: Tree) -> None:
    a = t.file("a", b"x")
    d = t.directory("d")
    os.link(a, d / "b")
    assert (d / "b").read_bytes() == b"x"
    assert ino(a) == ino(d / "b")


@check()
def hard_links_by_the_hundred(t: Tree) -> None:
    a = t.file("a")
    for at in range(300):
        os.link(a, t / f"l{at}")
    assert a.stat().st_nlink == 301
    assert len({ino(path) for path in t.path.iterdir()}) == 1


@check()
def open_file_survives_unlink(t: Tree) -> None:
    path = t.file("f", b"before")
    with opened(path) as fd:
        path.unlink()
        assert not path.exists()
        assert os.pread(fd, 99, 0) == b"before"
        os.pwrite(fd, b"after!", 0)
        os.ftruncate(fd, 5)
        os.fchmod(fd, 0o600)
        os.fsync(fd)
        status = os.fstat(fd)
        assert (status.st_nlink, status.st_size, status.st_mode & 0o777) == (0, 5, 0o600)
        assert os.pread(fd, 99, 0) == b"after"


@check()
def unlinked_file_and_new_file_of_its_name(t: Tree) -> None:
    path = t.file("f", b"old")
    with opened(path) as old:
        path.unlink()
        t.file("f", b"new")
        assert os.pread(old, 9, 0) == b"old"
        assert path.read_bytes() == b"new"
        assert os.fstat(old).st_ino != ino(path)


@check()
def open_file_survives_rename(t: Tree) -> None:
    path = t.file("f", b"data")
    d = t.directory("d")
    with opened(path) as fd:
        path.rename(d / "g")
        os.pwrite(fd, b"DA", 0)
        os.ftruncate(fd, 3)
        assert (d / "g").read_bytes() == b"DAt"
        assert os.fstat(fd).st_ino == ino(d / "g")


@check()
def open_directory_survives_rename_and_rmdir(t: Tree) -> None:
    d = t.directory("d")
    with opened(d, os.O_RDONLY) as fd:
        d.rename(t / "e")
        os.mkdir("sub", dir_fd=fd)
        assert os.listdir(t / "e") == ["sub"]
        os.rmdir("sub", dir_fd=fd)
        (t / "e").rmdir()
        assert os.fstat(fd).st_nlink == 0
        with fails(errno.ENOENT):
            os.mkdir("sub", dir_fd=fd)


@check()
def reopen_unlinked_by_proc(t: Tree) -> None:
    path = t.file("f", b"data")
    with opened(path) as fd:
        path.unlink()
        with opened(f"/proc/self/fd/{fd}", os.O_RDONLY) as again:
            assert os.read(again, 9) == b"data"


@check()
def tmpfile_then_linkat(t: Tree) -> None:
    with opened(t.path, os.O_TMPFILE | os.O_RDWR, 0o640) as fd:
        os.write(fd, b"later named")
        assert os.fstat(fd).st_nlink == 0
        assert os.listdir(t.path) == []
        link_fd(fd, t / "named")
    assert (t / "named").read_bytes() == b"later named"
    assert (t / "named").stat().st_nlink == 1
    assert (t / "named").stat().st_mode & 0o777 == 0o640


@check()
def tmpfile_exclusive_cannot_be_linked(t: Tree) -> None:
    with opened(t.path, os.O_TMPFILE | os.O_RDWR | os.O_EXCL) as fd, fails(errno.ENOENT):
        link_fd(fd, t / "named")


@check()
def tmpfile_dropped(t: Tree) -> None:
    with opened(t.path, os.O_TMPFILE | os.O_WRONLY) as fd:
        os.write(fd, pattern(10000))
        os.fsync(fd)
    assert os.listdir(t.path) == []


@check()
def rename_over_file(t: Tree) -> None:
    a, b = t.file("a", b"a"), t.file("b", b"b")
    number = ino(a)
    a.rename(b)
    assert b.read_bytes() == b"a"
    assert ino(b) == number
    assert os.listdir(t.path) == ["b"]


@check()
def rename_over_open_file(t: Tree) -> None:
    a, b = t.file("a", b"new"), t.file("b", b"old")
    with opened(b) as fd:
        a.rename(b)
        assert os.pread(fd, 9, 0) == b"old"
        assert os.fstat(fd).st_nlink == 0
        os.pwrite(fd, b"OLD", 0)
        assert b.read_bytes() == b"new"


@check()
def rename_while_both_open(t: Tree) -> None:
    a, b = t.file("a", b"new"), t.file("b", b"old")
    with opened(a) as new, opened(b) as old:
        a.rename(b)
        os.pwrite(new, b"N", 0)
        os.pwrite(old, b"O", 0)
        assert b.read_bytes() == b"New"
        assert os.pread(old, 9, 0) == b"Old"


@check()
def rename_to_itself_and_to_its_link(t: Tree) -> None:
    a = t.file("a", b"x")
    a.rename(a)
    os.link(a, t / "b")
    a.rename(t / "b")
    assert sorted(os.listdir(t.path)) == ["a", "b"]


@check()
def rename_directory_with_contents(t: Tree) -> None:
    d = t.directory("d")
    (d / "sub").mkdir()
    (d / "sub" / "f").write_bytes(b"x")
    e = t.directory("e")
    d.rename(e / "moved")
    assert (e / "moved" / "sub" / "f").read_bytes() == b"x"
    assert os.stat(e / "moved" / "..").st_ino == ino(e)
    assert e.stat().st_nlink == 3


@check()
def rename_directory_over_empty_one(t: Tree) -> None:
    d, e = t.directory("d"), t.directory("e")
    (d / "f").write_bytes(b"x")
    d.rename(e)
    assert os.listdir(t.path) == ["e"]
    assert os.listdir(e) == ["f"]


@check()
def rename_directory_below_itself(t: Tree) -> None:
    d = t.directory("d")
    (d / "e").mkdir()
    with fails(errno.EINVAL):
        d.rename(d / "e" / "d")
    with fails(errno.ENOTEMPTY):
        (d / "e").rename(d)


@check()
def rename_noreplace(t: Tree) -> None:
    a, b = t.file("a", b"a"), t.file("b", b"b")
    with fails(errno.EEXIST):
        renameat2(a, b, RENAME_NOREPLACE)
    assert b.read_bytes() == b"b"
    renameat2(a, t / "c", RENAME_NOREPLACE)
    assert (t / "c").read_bytes() == b"a"


@check()
def rename_exchange_files(t: Tree) -> None:
    a, b = t.file("a", b"a"), t.file("b", b"b")
    numbers = ino(a), ino(b)
    renameat2(a, b, RENAME_EXCHANGE)
    assert (a.read_bytes(), b.read_bytes()) == (b"b", b"a")
    assert (ino(b), ino(a)) == numbers


@check()
def rename_exchange_file_and_directory(t: Tree) -> None:
    a, d = t.file("a", b"a"), t.directory("d")
    (d / "f").write_bytes(b"f")
    renameat2(a, d, RENAME_EXCHANGE)
    assert d.read_bytes() == b"a"
    assert (a / "f").read_bytes() == b"f"
    with fails(errno.ENOENT):
        renameat2(a, t / "missing", RENAME_EXCHANGE)


@check()
def rename_flags_that_exclude_each_other(t: Tree) -> None:
    a, b = t.file("a"), t.file("b")
    with fails(errno.EINVAL):
        renameat2(a, b, RENAME_EXCHANGE | RENAME_NOREPLACE)
    with fails(errno.EINVAL):
        renameat2(a, b, 0x80)


@check(root=True)
def rename_whiteout(t: Tree) -> None:
    """FUSE has no whiteouts; a filesystem that has them leaves a device 0:0."""
    a = t.file("a", b"a")
    try:
        renameat2(a, t / "b", RENAME_WHITEOUT)
    except OSError as error:
        assert error.errno == errno.EINVAL and t.mirrored
        assert a.read_bytes() == b"a"
    else:
        assert a.lstat().st_rdev == 0
        assert (t / "b").read_bytes() == b"a"


@check()
def renamed_and_recreated(t: Tree) -> None:
    """As an editor saves: the old file aside, a new one in its place."""
    for turn in range(20):
        path = t.file("f.new", b"%d" % turn)
        if turn:
            os.rename(t / "f", t / "f~")
        path.rename(t / "f")
        assert (t / "f").read_bytes() == b"%d" % turn
    assert sorted(os.listdir(t.path)) == ["f", "f~"]


@check()
def symlink_targets(t: Tree) -> None:
    for length in (1, 255, 1000, 4095):
        target = ("t" * 200 + "/") * 30
        os.symlink(target[:length], t / f"s{length}")
        assert os.readlink(t / f"s{length}") == target[:length]
        assert (t / f"s{length}").lstat().st_size == length
    with fails(errno.ENAMETOOLONG):
        os.symlink("t" * 4096, t / "s4096")
    with fails(errno.ENOENT):
        os.symlink("", t / "s0")


@check()
def symlink_target_is_any_text(t: Tree) -> None:
    for at, target in enumerate((b"\xff\x80 x", b"..", b"/", b"a//b/../c/", b"/nowhere/at/all")):
        path = os.fsencode(t.path) + b"/s%d" % at
        os.symlink(target, path)
        assert os.readlink(path) == target


@check()
def symlink_followed(t: Tree) -> None:
    d = t.directory("d")
    (d / "f").write_bytes(b"x")
    os.symlink("d", t / "s")
    os.symlink("s/f", t / "s2")
    assert (t / "s" / "f").read_bytes() == b"x"
    assert (t / "s2").read_bytes() == b"x"
    (t / "s2").write_bytes(b"y")
    assert (d / "f").read_bytes() == b"y"
    (t / "s" / "g").write_bytes(b"z")
    assert (d / "g").exists()


@check()
def symlink_out_of_the_source(t: Tree) -> None:
    """The kernel follows links in the caller's own view, not the daemon in its."""
    os.symlink("/etc/passwd", t / "absolute")
    os.symlink("../" * 40 + "etc/passwd", t / "relative")
    assert (t / "absolute").read_bytes() == Path("/etc/passwd").read_bytes()
    assert (t / "relative").read_bytes() == Path("/etc/passwd").read_bytes()
    assert os.readlink(t / "absolute") == "/etc/passwd"


@check()
def dot_dot_above_the_root(t: Tree) -> None:
    """`..` of a mount's root is the mount point's parent, as for any mount."""
    assert os.stat(f"{t.root}/..").st_ino == t.root.parent.stat().st_ino
    with opened(t.root, os.O_RDONLY) as fd:
        assert os.stat("..", dir_fd=fd).st_ino == t.root.parent.stat().st_ino


@check()
def symlink_changed_in_place(t: Tree) -> None:
    os.symlink("one", t / "s")
    assert os.readlink(t / "s") == "one"
    os.symlink("two", t / "s2")
    os.rename(t / "s2", t / "s")
    assert os.readlink(t / "s") == "two"


@check()
def symlink_exists(t: Tree) -> None:
    os.symlink("nowhere", t / "s")
    with fails(errno.EEXIST):
        os.symlink("x", t / "s")
    with fails(errno.EEXIST):
        os.mkdir(t / "s")
    with fails(errno.EEXIST):
        os.open(t / "s", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with fails(errno.ENOENT):
        os.stat(t / "s")


@check()
def create_through_dangling_symlink(t: Tree) -> None:
    os.symlink("made", t / "s")
    (t / "s").write_bytes(b"x")
    assert (t / "made").read_bytes() == b"x"


@check()
def directory_link_count(t: Tree) -> None:
    d = t.directory("d")
    assert d.stat().st_nlink == 2
    (d / "a").mkdir()
    (d / "b").mkdir()
    assert d.stat().st_nlink == 4
    (d / "a").rmdir()
    assert d.stat().st_nlink == 3
    (d / "b").rename(t / "b")
    assert d.stat().st_nlink == 2


@check()
def inode_numbers_are_stable(t: Tree) -> None:
    paths = [t.file(f"f{at}") for at in range(50)]
    before = [ino(path) for path in paths]
    assert len(set(before)) == 50
    with opened(t.path, os.O_RDONLY) as fd:
        os.fsync(fd)
    assert [ino(path) for path in paths] == before


@check()
def inode_numbers_are_those_of_the_source(t: Tree) -> None:
    """Backup programs and `rsync -H` compare them from one mount to the next."""
    t.file("f")
    t.directory("d")
    for name in ("f", "d"):
        assert ino(t / name) == ino(t.source / name)
