"""Who owns what, and what happens to modes: the daemon must act as its caller."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from ..linux import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fallocate, link_fd, opened
from . import (
    GROUP,
    OTHER,
    PASSED_THROUGH,
    TEAM,
    USER,
    Tree,
    add,
    as_user,
    check,
    each_fails,
    fails,
    mode_of,
    owner_of,
)

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # cap_net_raw+ep


def shared(t: Tree) -> None:
    """Let everybody make files in the check's directory."""
    t.path.chmod(0o777)


def _touch(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


MAKERS: dict[str, tuple[Callable[[Path], object], int]] = {
    "create": (_touch, 0o644),
    "mkdir": (os.mkdir, 0o755),
    "mkfifo": (os.mkfifo, 0o644),
    "mknod": (lambda path: os.mknod(path, stat.S_IFREG | 0o666), 0o644),
    "symlink": (lambda path: os.symlink("x", path), 0o777),
}


def _owned(make: Callable[[Path], object], mode: int) -> Callable[[Tree], None]:
    def run(t: Tree) -> None:
        shared(t)
        as_user(make, t / "x")
        assert owner_of(t / "x") == owner_of(t.source / "x") == (USER, GROUP)
        assert stat.S_IMODE((t / "x").lstat().st_mode) == mode
        as_user(make, t / "y", uid=OTHER, gid=TEAM, groups=(3000,), umask=0o077)
        assert owner_of(t / "y") == (OTHER, TEAM)
        wanted = mode if mode == 0o777 else mode & 0o700
        assert stat.S_IMODE((t / "y").lstat().st_mode) == wanted

    return run


def _in_setgid_directory(make: Callable[[Path], object]) -> Callable[[Tree], None]:
    def run(t: Tree) -> None:
        d = t.directory("d", mode=0o2777, group=TEAM)
        as_user(make, d / "x")
        assert owner_of(d / "x") == (USER, TEAM)
        if stat.S_ISDIR((d / "x").lstat().st_mode):
            assert mode_of(d / "x") == 0o2755
        make(d / "r")
        assert owner_of(d / "r") == (0, TEAM)

    return run


for _name, (_make, _mode) in MAKERS.items():
    add(f"owner_of_{_name}", _owned(_make, _mode), root=True)
    add(f"setgid_directory_{_name}", _in_setgid_directory(_make), root=True)


@check(root=True)
def owner_of_tmpfile(t: Tree) -> None:
    shared(t)

    def work() -> None:
        with opened(t.path, os.O_TMPFILE | os.O_RDWR, 0o666) as fd:
            link_fd(fd, t / "x")

    as_user(work)
    assert owner_of(t / "x") == (USER, GROUP)
    assert mode_of(t / "x") == 0o644


@check(root=True)
def owner_of_tmpfile_in_setgid_directory(t: Tree) -> None:
    d = t.directory("d", mode=0o2777, group=TEAM)

    def work() -> int:
        with opened(d, os.O_TMPFILE | os.O_RDWR) as fd:
            return os.fstat(fd).st_gid

    assert as_user(work) == TEAM


@check(root=True)
def create_with_rights_of_a_supplementary_group(t: Tree) -> None:
    d = t.directory("d", mode=0o770, group=TEAM)
    with fails(errno.EACCES):
        as_user(_touch, d / "x")
    as_user(_touch, d / "x", groups=(5000, TEAM))
    assert owner_of(d / "x") == (USER, GROUP)
    for make in (os.mkdir, os.mkfifo):
        as_user(make, d / make.__name__, groups=(TEAM,))
    as_user(os.link, d / "x", d / "l", groups=(TEAM,))
    as_user(os.rename, d / "l", d / "m", groups=(TEAM,))
    as_user(os.unlink, d / "m", groups=(TEAM,))
    as_user(os.rmdir, d / "mkdir", groups=(TEAM,))


@check(root=True)
def setgid_file_in_setgid_directory_by_a_stranger(t: Tree) -> None:
    """A file that is executable for a group that its maker is not in never gets the setgid bit."""
    d = t.directory("d", mode=0o2777, group=TEAM)

    def make(name: str) -> None:
        os.close(os.open(d / name, os.O_CREAT | os.O_RDWR, 0o2775))

    as_user(make, "stranger", umask=0)
    as_user(make, "member", umask=0, groups=(TEAM,))
    assert mode_of(d / "stranger") == 0o775
    assert mode_of(d / "member") == 0o2775


@check()
def umask_is_the_callers(t: Tree) -> None:
    for umask in (0, 0o002, 0o022, 0o077, 0o777):
        before = os.umask(umask)
        try:
            path = t / f"f{umask:o}"
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o777))
            os.mkdir(t / f"d{umask:o}")
        finally:
            os.umask(before)
        assert mode_of(path) == 0o777 & ~umask
        assert mode_of(t / f"d{umask:o}") == 0o777 & ~umask


@check()
def mode_bits_at_creation(t: Tree) -> None:
    before = os.umask(0)
    try:
        for mode in (0, 0o4755, 0o1644, 0o7777):
            os.close(os.open(t / f"f{mode:o}", os.O_CREAT | os.O_WRONLY, mode))
            assert mode_of(t / f"f{mode:o}") == mode
        os.mkdir(t / "d", 0o1777)
        assert mode_of(t / "d") == 0o1777
    finally:
        os.umask(before)


@check()
def chmod_of_everything(t: Tree) -> None:
    t.file("f")
    t.directory("d")
    os.mkfifo(t / "p")
    for name in ("f", "d", "p"):
        for mode in (0, 0o111, 0o640, 0o1777, 0o7777):
            os.chmod(t / name, mode)
            assert mode_of(t / name) == mode_of(t.source / name) == mode


@check(root=True)
def chown_of_everything(t: Tree) -> None:
    t.file("f")
    t.directory("d")
    os.symlink("f", t / "s")
    for name in ("f", "d", "s"):
        os.lchown(t / name, 12, 34)
        os.lchown(t / name, -1, 35)
        os.lchown(t / name, 13, -1)
        assert owner_of(t / name) == (13, 35)
    os.chown(t / "s", 2**32 - 2, 2**31)
    assert owner_of(t / "f") == (2**32 - 2, 2**31)
    assert owner_of(t / "s") == (13, 35)


@check(root=True)
def owner_gives_file_to_own_group(t: Tree) -> None:
    path = t.file("f", owner=USER, group=GROUP)
    as_user(os.chown, path, -1, TEAM, groups=(TEAM,))
    assert owner_of(path) == (USER, TEAM)
    with fails(errno.EPERM):
        as_user(os.chown, path, -1, 3000, groups=(TEAM,))
    with fails(errno.EPERM):
        as_user(os.chown, path, OTHER, -1)
    as_user(os.chown, path, USER, -1)


@check(root=True)
def chmod_by_owner_outside_the_group_drops_setgid(t: Tree) -> None:
    path = t.file("f", owner=USER, group=TEAM)
    as_user(os.chmod, path, 0o2755)
    assert mode_of(path) == 0o755
    as_user(os.chmod, path, 0o2755, groups=(TEAM,))
    assert mode_of(path) == 0o2755
    path.chmod(0o2711)
    assert mode_of(path) == 0o2711


@check(root=True)
def sticky_directory(t: Tree) -> None:
    d = t.directory("d", mode=0o1777)
    theirs = d / "theirs"
    theirs.write_bytes(b"x")
    os.chown(theirs, OTHER, -1)
    os.mkdir(d / "dir")
    as_user(_touch, d / "mine")
    refused = {
        "unlink": lambda: os.unlink(theirs),
        "rename": lambda: os.rename(theirs, d / "x"),
        "rename_over": lambda: os.rename(d / "mine", theirs),
        "rmdir": lambda: os.rmdir(d / "dir"),
    }
    as_user(each_fails, errno.EPERM, refused)
    as_user(os.rename, d / "mine", d / "mine2")
    as_user(os.unlink, d / "mine2")
    as_user(os.unlink, theirs, uid=OTHER)


@check(root=True)
def directory_owner_may_remove_from_sticky(t: Tree) -> None:
    d = t.directory("d", mode=0o1777, owner=USER)
    (d / "theirs").write_bytes(b"")
    as_user(os.unlink, d / "theirs")


def _write(fd: int) -> None:
    os.pwrite(fd, b"x", 0)


def _append(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.write(fd, b"x")


def _copy(fd: int) -> None:
    with opened(f"/proc/self/fd/{fd}", os.O_RDONLY) as source:
        os.copy_file_range(source, fd, 100, 0, 5000)


def _direct(fd: int) -> None:
    import mmap

    buffer = mmap.mmap(-1, 4096)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
    os.pwritev(fd, [buffer], 0)


def _splice(fd: int) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x")
    os.splice(reader, fd, 1, offset_dst=0)
    os.close(reader)
    os.close(writer)


DROPPING: dict[str, Callable[[int], None]] = {
    "write": _write,
    "append": _append,
    "direct_write": _direct,
    "writev": lambda fd: os.writev(fd, [b"x", b"y"]) and None,
    "ftruncate_down": lambda fd: os.ftruncate(fd, 10),
    "ftruncate_up": lambda fd: os.ftruncate(fd, 100000),
    "fallocate": lambda fd: fallocate(fd, 0, 0, 100000),
    "punch_hole": lambda fd: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4096),
    "zero_range": lambda fd: fallocate(fd, ZERO_RANGE, 0, 4096),
    "copy_file_range": _copy,
    "splice": _splice,
}


def _suid_dropped(change: Callable[[int], None]) -> Callable[[Tree], None]:
    """By somebody who may write the file and does not own it."""

    def run(t: Tree) -> None:
        path = t.file("f", bytes(8192), mode=0o6777, owner=OTHER, group=TEAM)
        assert mode_of(path) == 0o6777

        def work() -> None:
            with opened(path) as fd:
                change(fd)
                assert mode_of(fd) == 0o777, "as seen by the writer"

        as_user(work)
        assert mode_of(path) == mode_of(t.source / "f") == 0o777

    return run


def _capability_dropped(change: Callable[[int], None]) -> Callable[[Tree], None]:
    """File capabilities go with any change, root's too."""

    def run(t: Tree) -> None:
        for who in (None, USER):
            path = t.file(f"f{who}", bytes(8192), mode=0o777)
            os.setxattr(path, "security.capability", CAPABILITY)
            assert os.getxattr(path, "security.capability") == CAPABILITY

            def work(path: Path = path) -> None:
                with opened(path) as fd:
                    change(fd)

            work() if who is None else as_user(work)
            for side in (t.path, t.source):
                with fails(errno.ENODATA):
                    os.getxattr(side / path.name, "security.capability")

    return run


for _name, _change in DROPPING.items():
    add(f"suid_dropped_by_{_name}", _suid_dropped(_change), root=True)
for _name in ("write", "direct_write", "ftruncate_down", "fallocate"):
    add(f"capability_dropped_by_{_name}", _capability_dropped(DROPPING[_name]), root=True)


@check(root=True)
def suid_dropped_by_open_truncate(t: Tree) -> None:
    path = t.file("f", b"data", mode=0o6777, owner=OTHER)
    as_user(lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)))
    assert mode_of(path) == 0o777


@check(root=True)
def suid_dropped_by_truncate(t: Tree) -> None:
    path = t.file("f", b"data", mode=0o6777, owner=OTHER)
    as_user(os.truncate, path, 2)
    assert mode_of(path) == 0o777


@check(root=True)
def suid_dropped_by_owner_who_writes(t: Tree) -> None:
    path = t.file("f", b"data", mode=0o6755, owner=USER, group=GROUP)
    as_user(path.write_bytes, b"x")
    assert mode_of(path) == 0o755


@check(root=True)
def suid_dropped_once_and_set_again(t: Tree) -> None:
    """The kernel remembers that a file has nothing to drop; a chmod must end that."""
    path = t.file("f", b"data", mode=0o6777, owner=OTHER)

    def work(fd: int) -> None:
        os.pwrite(fd, b"x", 0)

    with opened(path) as fd:
        for _ in range(3):
            path.chmod(0o6777)
            as_user(work, fd)
            assert mode_of(path) == 0o777
            as_user(work, fd)


@check(root=True)
def sgid_without_group_execution_is_kept(t: Tree) -> None:
    """By a member of the file's group; the kernel engine writes as nobody's member."""
    path = t.file("f", b"data", mode=0o2666, owner=USER, group=GROUP)
    as_user(_rewrite, path)
    assert mode_of(path) in ((0o2666, 0o666) if t.engine in PASSED_THROUGH else (0o2666,))


@check(root=True)
def suid_kept_when_root_writes(t: Tree) -> None:
    """The kernel engine writes without the right to keep it, so that nobody else's write keeps it either."""
    path = t.file("f", b"data", mode=0o6777, owner=OTHER)
    _rewrite(path)
    wanted = (0o6777, 0o777) if t.engine in PASSED_THROUGH else (0o6777,)
    assert mode_of(path) in wanted


@check(root=True)
def suid_kept_when_root_truncates(t: Tree) -> None:
    path = t.file("f", b"data", mode=0o6777, owner=OTHER)
    os.truncate(path, 1)
    assert mode_of(path) == 0o6777


@check(root=True)
def suid_kept_when_nothing_is_written(t: Tree) -> None:
    path = t.file("f", b"data", mode=0o6777, owner=OTHER)

    def work() -> None:
        with opened(path) as fd:
            os.read(fd, 10)
            os.write(fd, b"")
            os.fsync(fd)

    as_user(work)
    assert mode_of(path) == 0o6777


def _rewrite(path: Path) -> None:
    with opened(path) as fd:
        os.pwrite(fd, b"x", 0)


@check(root=True)
def chown_drops_suid_and_capability(t: Tree) -> None:
    path = t.file("f", b"data", mode=0o6777)
    os.setxattr(path, "security.capability", CAPABILITY)
    os.chown(path, USER, TEAM)
    assert mode_of(path) == 0o777
    with fails(errno.ENODATA):
        os.getxattr(path, "security.capability")


@check(root=True)
def chown_by_owner_drops_suid(t: Tree) -> None:
    path = t.file("f", b"data", mode=0o6777, owner=USER, group=GROUP)
    as_user(os.chown, path, -1, TEAM, groups=(TEAM,))
    assert mode_of(path) == 0o777


@check(root=True)
def chown_of_directory_keeps_setgid(t: Tree) -> None:
    d = t.directory("d", mode=0o6775)
    os.chown(d, USER, TEAM)
    assert mode_of(d) == 0o6775


@check(root=True)
def link_count_and_owner_after_user_renames(t: Tree) -> None:
    d = t.directory("d", owner=USER)

    def work() -> None:
        os.chdir(d)
        _touch(Path("a"))
        os.link("a", "b")
        os.rename("a", "c")
        os.mkdir("e")
        os.rename("c", "e/c")

    as_user(work)
    assert owner_of(d / "e" / "c") == (USER, GROUP)
    assert (d / "b").stat().st_nlink == 2


@check(root=True)
def many_callers_at_once(t: Tree) -> None:
    """Each of several users makes files at the same time: none gets another's."""
    from ..linux import Child

    shared(t)

    def work(uid: int) -> None:
        for at in range(100):
            os.close(os.open(t / f"f{uid}.{at}", os.O_CREAT | os.O_WRONLY))
            os.mkdir(t / f"d{uid}.{at}")

    workers = [
        Child(work, uid, uid=uid, gid=uid + 1, groups=(uid + 2,)) for uid in range(1000, 1006)
    ]
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.kill)
        for worker in workers:
            worker.result()
    for path in t.path.iterdir():
        uid = int(path.name[1:].split(".")[0])
        assert owner_of(path) == (uid, uid + 1)


@check(root=True)
def initdb_like_directory(t: Tree) -> None:
    """A server's first start as its own user: a 0700 tree, made, renamed and synced."""
    d = t.directory("d", mode=0o700, owner=USER, group=GROUP)

    def work() -> int:
        os.chdir(d)
        os.umask(0o077)
        for sub in ("base", "global", "pg_wal"):
            os.mkdir(sub)
            with opened(f"{sub}/file.tmp", os.O_CREAT | os.O_RDWR, 0o600) as fd:
                fallocate(fd, 0, 0, 1 << 20)
                os.pwrite(fd, b"x" * 8192, 8192)
                os.fdatasync(fd)
            os.rename(f"{sub}/file.tmp", f"{sub}/file")
            with opened(sub, os.O_RDONLY) as fd:
                os.fsync(fd)
        return sum(len(os.listdir(sub)) for sub in os.listdir("."))

    assert as_user(work) == 3
    assert mode_of(d / "base" / "file") == 0o600
