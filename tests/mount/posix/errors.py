"""Calls that must fail, each with one errno."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from ..linux import AT_SYMLINK_NOFOLLOW, utimensat
from . import Tree, add, as_user, check, fails


def prepare(t: Tree) -> None:
    t.file("file", b"data")
    t.file("closed", b"data", mode=0)
    full = t.directory("full")
    (full / "f").write_bytes(b"")
    t.directory("empty")
    os.symlink("loop2", t / "loop1")
    os.symlink("loop1", t / "loop2")
    os.symlink("nowhere", t / "dangling")
    os.symlink("full", t / "todir")
    os.mkfifo(t / "fifo")
    t.file("mine", owner=1000 if os.geteuid() == 0 else -1)
    t.directory("open", mode=0o777)


Action = Callable[[Tree], object]
ERRORS: list[tuple[str, int, Action]] = [
    ("unlink_missing", errno.ENOENT, lambda t: os.unlink(t / "missing")),
    ("unlink_directory", errno.EISDIR, lambda t: os.unlink(t / "empty")),
    ("unlink_below_file", errno.ENOTDIR, lambda t: os.unlink(t / "file/x")),
    ("unlink_through_loop", errno.ELOOP, lambda t: os.unlink(t / "loop1/x")),
    ("rmdir_missing", errno.ENOENT, lambda t: os.rmdir(t / "missing")),
    ("rmdir_full", errno.ENOTEMPTY, lambda t: os.rmdir(t / "full")),
    ("rmdir_file", errno.ENOTDIR, lambda t: os.rmdir(t / "file")),
    ("rmdir_symlink", errno.ENOTDIR, lambda t: os.rmdir(t / "todir")),
    ("mkdir_exists", errno.EEXIST, lambda t: os.mkdir(t / "full")),
    ("mkdir_over_file", errno.EEXIST, lambda t: os.mkdir(t / "file")),
    ("mkdir_over_dangling", errno.EEXIST, lambda t: os.mkdir(t / "dangling")),
    ("mkdir_below_missing", errno.ENOENT, lambda t: os.mkdir(t / "missing/x")),
    ("mkdir_below_file", errno.ENOTDIR, lambda t: os.mkdir(t / "file/x")),
    ("mkfifo_exists", errno.EEXIST, lambda t: os.mkfifo(t / "file")),
    ("open_missing", errno.ENOENT, lambda t: os.open(t / "missing", os.O_RDONLY)),
    ("open_dangling", errno.ENOENT, lambda t: os.open(t / "dangling", os.O_RDONLY)),
    ("open_loop", errno.ELOOP, lambda t: os.open(t / "loop1", os.O_RDONLY)),
    ("open_nofollow", errno.ELOOP, lambda t: os.open(t / "todir", os.O_NOFOLLOW)),
    ("open_directory_to_write", errno.EISDIR, lambda t: os.open(t / "full", os.O_WRONLY)),
    ("open_directory_to_create", errno.EISDIR, lambda t: os.open(t / "full", os.O_CREAT)),
    ("open_file_as_directory", errno.ENOTDIR, lambda t: os.open(t / "file", os.O_DIRECTORY)),
    ("open_exclusive", errno.EEXIST, lambda t: os.open(t / "file", os.O_CREAT | os.O_EXCL)),
    ("open_below_file", errno.ENOTDIR, lambda t: os.open(t / "file/x", os.O_CREAT)),
    ("open_below_missing", errno.ENOENT, lambda t: os.open(t / "missing/x", os.O_CREAT)),
    ("open_fifo_to_write", errno.ENXIO, lambda t: os.open(t / "fifo", os.O_WRONLY | os.O_NONBLOCK)),
    ("readlink_file", errno.EINVAL, lambda t: os.readlink(t / "file")),
    ("readlink_missing", errno.ENOENT, lambda t: os.readlink(t / "missing")),
    ("symlink_exists_file", errno.EEXIST, lambda t: os.symlink("x", t / "file")),
    ("symlink_below_file", errno.ENOTDIR, lambda t: os.symlink("x", t / "file/x")),
    ("link_missing", errno.ENOENT, lambda t: os.link(t / "missing", t / "l")),
    ("link_exists", errno.EEXIST, lambda t: os.link(t / "file", t / "full")),
    ("link_directory", errno.EPERM, lambda t: os.link(t / "empty", t / "l")),
    ("link_to_other_filesystem", errno.EXDEV, lambda t: os.link(t / "file", "/dev/shm/zcfs-x")),
    ("rename_missing", errno.ENOENT, lambda t: os.rename(t / "missing", t / "x")),
    ("rename_to_missing_dir", errno.ENOENT, lambda t: os.rename(t / "file", t / "missing/x")),
    ("rename_file_over_dir", errno.EISDIR, lambda t: os.rename(t / "file", t / "empty")),
    ("rename_dir_over_file", errno.ENOTDIR, lambda t: os.rename(t / "empty", t / "file")),
    ("rename_dir_over_full", errno.ENOTEMPTY, lambda t: os.rename(t / "empty", t / "full")),
    ("rename_out_of_filesystem", errno.EXDEV, lambda t: os.rename(t / "file", "/dev/shm/zcfs-x")),
    ("truncate_directory", errno.EISDIR, lambda t: os.truncate(t / "full", 0)),
    ("truncate_missing", errno.ENOENT, lambda t: os.truncate(t / "missing", 0)),
    ("truncate_negative", errno.EINVAL, lambda t: os.truncate(t / "file", -1)),
    ("chmod_missing", errno.ENOENT, lambda t: os.chmod(t / "missing", 0o600)),
    ("chdir_file", errno.ENOTDIR, lambda t: os.chdir(t / "file")),
    ("stat_below_file", errno.ENOTDIR, lambda t: os.stat(t / "file/x")),
    ("stat_loop", errno.ELOOP, lambda t: os.stat(t / "loop1")),
    ("listdir_file", errno.ENOTDIR, lambda t: os.listdir(t / "file")),
    ("access_missing", errno.ENOENT, lambda t: os.stat(t / "missing")),
    (
        "utimensat_missing",
        errno.ENOENT,
        lambda t: utimensat(t / "missing", (0, 0), (0, 0), AT_SYMLINK_NOFOLLOW),
    ),
    ("utimensat_bad_ns", errno.EINVAL, lambda t: utimensat(t / "file", (0, 10**9), (0, 0))),
]

REFUSED: list[tuple[str, int, Action]] = [
    ("user_opens_closed_file", errno.EACCES, lambda t: os.open(t / "closed", os.O_RDONLY)),
    ("user_writes_others_file", errno.EACCES, lambda t: os.open(t / "file", os.O_WRONLY)),
    ("user_truncates_others_file", errno.EACCES, lambda t: os.truncate(t / "file", 0)),
    ("user_creates_in_others_dir", errno.EACCES, lambda t: os.open(t / "full/x", os.O_CREAT)),
    ("user_mkdir_in_others_dir", errno.EACCES, lambda t: os.mkdir(t / "full/x")),
    ("user_unlinks_in_others_dir", errno.EACCES, lambda t: os.unlink(t / "full/f")),
    ("user_renames_from_others_dir", errno.EACCES, lambda t: os.rename(t / "full/f", t / "x")),
    ("user_renames_to_others_dir", errno.EACCES, lambda t: os.rename(t / "file", t / "full/x")),
    ("user_links_into_others_dir", errno.EACCES, lambda t: os.link(t / "mine", t / "full/x")),
    ("user_symlinks_in_others_dir", errno.EACCES, lambda t: os.symlink("x", t / "full/x")),
    ("user_chmods_others_file", errno.EPERM, lambda t: os.chmod(t / "file", 0o777)),
    ("user_chowns_others_file", errno.EPERM, lambda t: os.chown(t / "file", 1000, -1)),
    ("user_sets_others_times", errno.EPERM, lambda t: os.utime(t / "file", (1, 1))),
    ("user_touches_others_file", errno.EACCES, lambda t: os.utime(t / "file")),
    ("user_sets_others_xattr", errno.EACCES, lambda t: os.setxattr(t / "file", "user.a", b"x")),
    ("user_makes_device", errno.EPERM, lambda t: os.mknod(t / "open/n", 0o20600, os.makedev(1, 3))),
    ("user_removes_others_dir", errno.EACCES, lambda t: os.rmdir(t / "full/sub")),
]


def _failing(code: int, action: Action) -> Callable[[Tree], None]:
    def run(t: Tree) -> None:
        prepare(t)
        with fails(code):
            action(t)

    return run


def _refused(code: int, action: Action) -> Callable[[Tree], None]:
    def run(t: Tree) -> None:
        prepare(t)
        (t / "full" / "sub").mkdir()
        with fails(code):
            as_user(action, t)
        assert (t / "file").read_bytes() == b"data"

    return run


for _name, _code, _action in ERRORS:
    add(_name, _failing(_code, _action))
for _name, _code, _action in REFUSED:
    add(_name, _refused(_code, _action), root=True)


@check(root=True)
def user_without_search_permission(t: Tree) -> None:
    d = t.directory("d", mode=0o700)
    (d / "f").write_bytes(b"x")
    for call in (os.stat, os.listdir, os.unlink):
        with fails(errno.EACCES):
            as_user(call, d / "f" if call is not os.listdir else d)
    d.chmod(0o711)
    assert as_user(os.stat, d / "f").st_size == 1
    with fails(errno.EACCES):
        as_user(os.listdir, d)
    d.chmod(0o744)
    assert as_user(os.listdir, d) == ["f"]
    with fails(errno.EACCES):
        as_user(os.stat, d / "f")


@check(root=True)
def rights_are_checked_again_after_chmod(t: Tree) -> None:
    path = t.file("f", b"x", mode=0o644)
    assert as_user(path.read_bytes) == b"x"
    path.chmod(0o600)
    with fails(errno.EACCES):
        as_user(path.read_bytes)
    os.chown(path, 1000, -1)
    assert as_user(path.read_bytes) == b"x"


@check(root=True)
def rights_of_supplementary_groups(t: Tree) -> None:
    path = t.file("f", b"x", mode=0o640, group=2000)
    with fails(errno.EACCES):
        as_user(path.read_bytes)
    assert as_user(path.read_bytes, groups=(3000, 2000)) == b"x"
    many = (*tuple(range(10000, 10100)), 2000)
    assert as_user(path.read_bytes, groups=many) == b"x"


@check(root=True)
def open_handle_keeps_its_rights(t: Tree) -> None:
    path = t.file("f", b"x", mode=0o600, owner=1000)

    def work() -> bytes:
        fd = os.open(path, os.O_RDWR)
        os.fchmod(fd, 0)
        os.pwrite(fd, b"yz", 0)
        os.ftruncate(fd, 1)
        return os.pread(fd, 9, 0)

    assert as_user(work) == b"y"


@check(root=True)
def created_file_is_writable_whatever_its_mode(t: Tree) -> None:
    t.path.chmod(0o777)

    def work() -> int:
        fd = os.open(t / "f", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o000)
        os.write(fd, b"data")
        os.fsync(fd)
        return os.fstat(fd).st_size

    assert as_user(work) == 4
    assert (t / "f").read_bytes() == b"data"


@check(root=True)
def read_only_creation_mode_with_write_handle(t: Tree) -> None:
    """As git writes its objects: mode 0444, through a handle for writing."""
    t.path.chmod(0o777)

    def work() -> int:
        fd = os.open(t / "f", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o444)
        os.write(fd, b"data")
        os.ftruncate(fd, 2)
        os.utime(fd, (1, 1))
        os.close(fd)
        os.rename(t / "f", t / "g")
        return os.stat(t / "g").st_size

    assert as_user(work) == 2
