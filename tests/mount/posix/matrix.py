"""One call on every kind of object, by several users, in the tree under test and in place: the same must happen.

The outcome of a case is the call's value or errno, and what then lies in the directory. These checks find what nobody
thought of; they say little on the bare directory, where both sides are the same.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..linux import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2, run_child
from . import Tree, add

Call = Callable[[str], Any]


def make_objects(base: Path) -> None:
    """One of each kind, named after it."""
    base.mkdir(mode=0o777)
    base.chmod(0o777)
    (base / "file").write_bytes(b"0123456789")
    (base / "closed").write_bytes(b"x")
    (base / "closed").chmod(0o000)
    (base / "suid").write_bytes(b"x")
    (base / "suid").chmod(0o6777)
    (base / "mine").write_bytes(b"x")
    os.chown(base / "mine", 1000, 1000)
    (base / "mine").chmod(0o600)
    (base / "empty").mkdir()
    (base / "full").mkdir()
    (base / "full" / "f").write_bytes(b"x")
    (base / "open").mkdir()
    (base / "open").chmod(0o777)
    (base / "sticky").mkdir()
    (base / "sticky" / "f").write_bytes(b"x")
    (base / "sticky").chmod(0o1777)
    (base / "private").mkdir(mode=0o700)
    (base / "private" / "f").write_bytes(b"x")
    os.symlink("file", base / "tofile")
    os.symlink("full", base / "todir")
    os.symlink("nowhere", base / "dangling")
    os.symlink("loop", base / "loop")
    os.mkfifo(base / "fifo")
    os.chmod(base / "fifo", 0o644)


OBJECTS = [
    "file", "closed", "suid", "mine", "empty", "full", "full/f", "open", "open/new", "sticky/f", "private/f",
    "tofile", "todir", "todir/f", "dangling", "loop", "fifo", "missing", "missing/x", "file/x", "file/",
    "empty/", "tofile/", "missing/", "open/new/", "n" * 256, "empty/.", "empty/..",
]  # fmt: skip


def _open(flags: int) -> Call:
    def call(path: str) -> int:
        fd = os.open(path, flags | os.O_NONBLOCK, 0o640)
        try:
            return os.fstat(fd).st_size if stat.S_ISREG(os.fstat(fd).st_mode) else -1
        finally:
            os.close(fd)

    return call


def _write(path: str) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND)
    try:
        return os.write(fd, b"abc")
    finally:
        os.close(fd)


CALLS: dict[str, Call] = {
    "open_rdonly": _open(os.O_RDONLY),
    "open_wronly": _open(os.O_WRONLY),
    "open_rdwr": _open(os.O_RDWR),
    "open_trunc": _open(os.O_WRONLY | os.O_TRUNC),
    "open_rdonly_trunc": _open(os.O_RDONLY | os.O_TRUNC),
    "open_creat": _open(os.O_RDWR | os.O_CREAT),
    "open_creat_trunc": _open(os.O_RDWR | os.O_CREAT | os.O_TRUNC),
    "open_excl": _open(os.O_RDWR | os.O_CREAT | os.O_EXCL),
    "open_directory": _open(os.O_RDONLY | os.O_DIRECTORY),
    "open_creat_directory": _open(os.O_RDONLY | os.O_CREAT | os.O_DIRECTORY),
    "open_nofollow": _open(os.O_RDONLY | os.O_NOFOLLOW),
    "open_path": _open(os.O_PATH),
    "open_noatime": _open(os.O_RDONLY | os.O_NOATIME),
    "open_accmode_3": _open(3),
    "open_tmpfile": _open(os.O_TMPFILE | os.O_RDWR),
    "append": _write,
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "mkdir": lambda path: os.mkdir(path, 0o750),
    "mkfifo": lambda path: os.mkfifo(path, 0o640),
    "mknod_file": lambda path: os.mknod(path, stat.S_IFREG | 0o640),
    "mknod_null": lambda path: os.mknod(path, stat.S_IFCHR | 0o640, os.makedev(1, 3)),
    "symlink_at": lambda path: os.symlink("x", path),
    "link_from": lambda path: os.link(path, path.rstrip("/").split("/")[0] + ".l", follow_symlinks=False),
    "link_to": lambda path: os.link("file", path),
    "readlink": os.readlink,
    "chmod": lambda path: os.chmod(path, 0o2751),
    "chown_user": lambda path: os.chown(path, 1000, -1),
    "chown_group": lambda path: os.chown(path, -1, 2000),
    "chown_nothing": lambda path: os.chown(path, -1, -1),
    "lchown": lambda path: os.lchown(path, 1000, 1000),
    "utime": lambda path: os.utime(path, (5, 6)),
    "utime_now": os.utime,
    "utime_nofollow": lambda path: os.utime(path, (5, 6), follow_symlinks=False),
    "truncate": lambda path: os.truncate(path, 3),
    "stat_mode": lambda path: stat.filemode(os.stat(path).st_mode),
    "lstat_mode": lambda path: stat.filemode(os.lstat(path).st_mode),
    "access_read": lambda path: os.access(path, os.R_OK),
    "access_write": lambda path: os.access(path, os.W_OK),
    "access_exec": lambda path: os.access(path, os.X_OK),
    "listdir": lambda path: sorted(os.listdir(path)),
    "chdir": lambda path: None if path.endswith("..") else os.chdir(path),
    "setxattr": lambda path: os.setxattr(path, "user.a", b"1"),
    "lsetxattr": lambda path: os.setxattr(path, "user.a", b"1", follow_symlinks=False),
    "setxattr_trusted": lambda path: os.setxattr(path, "trusted.a", b"1"),
    "setxattr_security": lambda path: os.setxattr(path, "security.a", b"1"),
    "getxattr": lambda path: os.getxattr(path, "user.none"),
    "listxattr": lambda path: sorted(os.listxattr(path)),
    "removexattr": lambda path: os.removexattr(path, "user.none"),
    "statvfs": lambda path: os.statvfs(path).f_namemax,
}  # fmt: skip
RENAMED = [
    "file", "mine", "empty", "full", "open/new", "sticky/f", "private/f", "tofile", "todir", "dangling",
    "fifo", "missing", "empty/", "file/", "missing/x", "full/f", "empty/.", "full/..",
]  # fmt: skip
# What no daemon can have its way in: passthrough writes by root drop set-id bits (owner.py), and with
# KILLPRIV_V2 the kernel does not tell anybody of a chown that changes nothing.
KNOWN = {("append", "suid"), ("chown_nothing", "suid")}
USERS = {"root": (0, 0, [0]), "user": (1000, 1000, []), "member": (1001, 1001, [0, 2000])}
Case = tuple[str, ...]
Outcome = tuple[str, ...]


def outcome(call: Callable[..., Any], *args: Any) -> str:
    try:
        return repr(call(*args))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def about(path: str) -> tuple[Any, ...]:
    status = os.lstat(path)
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    mode = stat.filemode(status.st_mode)
    return mode, status.st_uid, status.st_gid, status.st_nlink, size, int(status.st_mtime) < 10


def state(base: Path) -> list[tuple[Any, ...]]:
    """What lies below a directory, without inode numbers and times."""
    found = []
    for directory, subdirs, files in os.walk(base):
        for name in subdirs + files:
            path = os.path.join(directory, name)
            found.append((os.path.relpath(path, base), *about(path)))
    return sorted(found)


def become(uid: int, gid: int, groups: list[int]) -> None:
    """Be another user with all but the saved id, which is the way back."""
    os.setresuid(0, 0, 0)
    os.setgroups(groups)
    os.setresgid(gid, gid, 0)
    os.setresuid(uid, uid, 0)


def run_cases(
    seen: Path, inplace: Path, call: Callable[..., Any], cases: list[Case]
) -> list[Outcome]:
    """The outcome of every case for every user, in `seen`, whose objects are made and looked at in `inplace`.

    Objects are made again, in a directory of a new name, where a case has changed anything.
    """
    os.umask(0o022)
    outcomes: list[Outcome] = []
    turn, base, untouched = 0, "", []
    for who in USERS if os.geteuid() == 0 else ["root"]:
        for case in cases:
            if not base:
                base, turn = f"m{turn}", turn + 1
                make_objects(inplace / base)
                untouched = state(inplace / base)
            os.chdir(seen / base)
            if who != "root":
                become(*USERS[who])
            got = outcome(call, *case)
            if who != "root":
                become(*USERS["root"])
            os.chdir(seen / base)
            after = state(inplace / base)
            looks = [outcome(about, path) for path in case]
            changes = [] if after == untouched else sorted(set(after) ^ set(untouched))
            outcomes.append((f"{who}: {' '.join(case)[:60]}", got, *looks, str(changes)))
            if changes:
                os.chdir("/")
                shutil.rmtree(inplace / base)
                base = ""
    return outcomes


IN_PLACE: dict[str, list[Outcome]] = {}


def compare(t: Tree, name: str, call: Callable[..., Any], cases: list[Case]) -> None:
    """Run every case on both sides and show the differences."""
    if name not in IN_PLACE:
        (t.source / "inplace").mkdir()
        there = t.source / "inplace"
        IN_PLACE[name] = run_child(run_cases, there, there, call, cases)
    (t.source / "seen").mkdir()
    here = run_child(run_cases, t.path / "seen", t.source / "seen", call, cases)
    lines = [
        f"{mine[0]}: {mine[1:]}\n    in place {theirs[1:]}"
        for mine, theirs in zip(here, IN_PLACE[name], strict=True)
        if mine != theirs
    ]
    assert not lines, f"{len(lines)} differ\n" + "\n".join(lines[:20])


def _unary(name: str, call: Call) -> Callable[[Tree], None]:
    cases = [(path,) for path in OBJECTS if (name, path) not in KNOWN]
    return lambda t: compare(t, name, call, cases)


def _binary(name: str, call: Callable[[str, str], Any]) -> Callable[[Tree], None]:
    objects = RENAMED[:11] if name == "rename_exchange" else RENAMED
    cases = [(old, new) for old in objects for new in objects]
    return lambda t: compare(t, name, call, cases)


PAIRS: dict[str, Callable[[str, str], Any]] = {
    "rename": os.rename,
    "rename_noreplace": functools.partial(renameat2, flags=RENAME_NOREPLACE),
    "rename_exchange": functools.partial(renameat2, flags=RENAME_EXCHANGE),
    "link": functools.partial(os.link, follow_symlinks=False),
}
for _name, _call in CALLS.items():
    add(f"matrix_{_name}", _unary(_name, _call))
for _name, _pair in PAIRS.items():
    add(f"matrix_{_name}", _binary(_name, _pair))
