"""The system calls that the tests need and that Python's os module lacks, and processes to run them in."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import pickle
import select
import signal
import struct
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE, UNSHARE_RANGE = 1, 2, 8, 16, 32, 64
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IMMUTABLE_FL, FS_APPEND_FL, FS_NODUMP_FL = 0x10, 0x20, 0x40
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
FS_IOC_SHUTDOWN = 0x8004587D
PR_SET_PDEATHSIG = 1
CLOCK_REALTIME_COARSE = 5
STATX_BTIME, STATX_ALL = 0x800, 0xFFF
DT = {1: "fifo", 2: "char", 4: "dir", 6: "block", 8: "file", 10: "symlink", 12: "socket"}

PATIENCE = 30.0  # seconds before a test takes it that what must happen does not, on a busy machine

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: Any) -> int:
    """Call a C library function; -1 becomes OSError."""
    result: int = getattr(libc, name)(*args)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _path(path: str | bytes | Path) -> bytes:
    return os.fsencode(path)


def renameat2(old: str | Path, new: str | Path, flags: int) -> None:
    call("renameat2", AT_FDCWD, _path(old), AT_FDCWD, _path(new), flags)


def link_fd(fd: int, new: str | Path) -> None:
    """Give a name to an open file that has none."""
    call("linkat", AT_FDCWD, b"/proc/self/fd/%d" % fd, AT_FDCWD, _path(new), AT_SYMLINK_FOLLOW)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    call("fallocate", fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length))


def syncfs(fd: int) -> None:
    call("syncfs", fd)


def utimensat(
    path: str | Path, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0
) -> None:
    """Set times as (seconds, nanoseconds); UTIME_NOW and UTIME_OMIT go for nanoseconds."""
    call("utimensat", AT_FDCWD, _path(path), struct.pack("4q", *atime, *mtime), flags)


@dataclass(frozen=True)
class Statx:
    mask: int
    attributes: int
    ino: int
    size: int
    btime: int  # nanoseconds; 0 when the filesystem does not say


_STATX = struct.Struct("<IIQIIIHHQQQQ" + "qIi" * 4)


def statx(path: str | Path, flags: int = 0, mask: int = STATX_ALL) -> Statx:
    buffer = ctypes.create_string_buffer(256)
    call("statx", AT_FDCWD, _path(path), flags, mask, buffer)
    field = _STATX.unpack_from(buffer.raw)
    got = field[0]
    btime = field[15] * 10**9 + field[16] if got & STATX_BTIME else 0
    return Statx(mask=got, attributes=field[2], ino=field[8], size=field[9], btime=btime)


@dataclass(frozen=True)
class Entry:
    ino: int
    offset: int
    kind: str
    name: str


def getdents(fd: int, size: int = 32768) -> list[Entry]:
    """One getdents64 call on a directory."""
    buffer = ctypes.create_string_buffer(size)
    length = call("getdents64", fd, buffer, ctypes.c_size_t(size))
    raw, entries, at = buffer.raw, [], 0
    while at < length:
        ino, offset, record, kind = struct.unpack_from("<QqHB", raw, at)
        name = raw[at + 19 : at + record].split(b"\0", 1)[0]
        entries.append(Entry(ino, offset, DT.get(kind, "?"), os.fsdecode(name)))
        at += record
    return entries


def getdents_all(fd: int, size: int = 32768) -> list[Entry]:
    entries: list[Entry] = []
    while chunk := getdents(fd, size):
        entries += chunk
    return entries


def get_flags(fd: int) -> int:
    flags: int = struct.unpack("l", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))[0]
    return flags & 0xFFFFFFFF


def set_flags(fd: int, flags: int) -> None:
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", flags))


_FLOCK = struct.Struct("hhqqi4x")


def lock(fd: int, command: int, kind: int, start: int = 0, length: int = 0) -> tuple[int, ...]:
    """fcntl with a struct flock, whence SEEK_SET; returns (kind, start, length, pid)."""
    packed = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    kind, _, start, length, pid = _FLOCK.unpack(fcntl.fcntl(fd, command, packed))
    return kind, start, length, pid


def can_lock(fd: int, kind: int = fcntl.F_WRLCK, start: int = 0, length: int = 0) -> bool:
    """Whether F_SETLK gets the lock."""
    try:
        lock(fd, fcntl.F_SETLK, kind, start, length)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def can_lease(fd: int, kind: int = fcntl.F_RDLCK) -> bool:
    """Take a lease; a read lease is given when nobody has the file open for writing."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
    except BlockingIOError:
        return False
    return True


def wait_for(what: str, true: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until a condition holds that no descriptor announces."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain: {what}")
        time.sleep(0.002)


def tick() -> None:
    """Wait until the clock of file times has moved, so that a change of times can be seen."""
    before = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == before:
        time.sleep(0.001)


def blocks_in_kernel(pid: int) -> bool:
    """Whether a process sleeps in a system call that is not a read of its own pipe."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state in "SD"


class ChildFailed(AssertionError):
    """A forked child ended in another way than by returning."""


class Child:
    """A forked child that runs a function; `result()` returns what it returned, or raises."""

    def __init__(
        self,
        function: Callable[..., Any],
        *args: Any,
        uid: int | None = None,
        gid: int = 1000,
        groups: Sequence[int] = (),
        umask: int | None = None,
    ) -> None:
        reader, writer = os.pipe()
        parent = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other tests left threads
            self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            _run_child(writer, parent, function, args, uid, gid, groups, umask)
        os.close(writer)
        self._reader = reader
        self._done = False

    def finished(self, seconds: float = 0.0) -> bool:
        """Whether the child has returned, waiting up to so many seconds for it."""
        return self._done or bool(select.select([self._reader], [], [], seconds)[0])

    def result(self) -> Any:
        with os.fdopen(self._reader, "rb") as pipe:
            raw = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        self._done = True
        if not raw:
            raise ChildFailed(f"child ended with status {status:#x}")
        good, value = pickle.loads(raw)
        if good:
            return value
        if isinstance(value, OSError):
            raise value
        raise ChildFailed(value)

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Kill the child and reap it; does nothing if it has been reaped."""
        if not self._done:
            os.kill(self.pid, signum)
            os.waitpid(self.pid, 0)
            os.close(self._reader)
            self._done = True


def _run_child(
    writer: int,
    parent: int,
    function: Callable[..., Any],
    args: Sequence[Any],
    uid: int | None,
    gid: int,
    groups: Sequence[int],
    umask: int | None,
) -> None:
    """Never returns. The child dies with its parent, whatever happens to that."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if uid is not None:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        if umask is not None:
            os.umask(umask)
        answer: tuple[bool, Any] = (True, function(*args))
    except OSError as error:
        answer = (False, error)
    except BaseException:
        answer = (False, traceback.format_exc())
    with contextlib.suppress(BaseException):
        os.write(writer, pickle.dumps(answer))
    os._exit(0)


def run_child(function: Callable[..., Any], *args: Any, **identity: Any) -> Any:
    """Run a function in a forked child, as another user where asked; returns its value."""
    return Child(function, *args, **identity).result()


def kill_all(processes: Sequence[Child]) -> None:
    """All are told before the first is waited for: one may be in the way of another."""
    for process in processes:
        if not process._done:
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.kill()


@contextlib.contextmanager
def child(function: Callable[..., Any], *args: Any, **identity: Any) -> Iterator[Child]:
    """A child for the length of a block; killed at its end if it still runs."""
    process = Child(function, *args, **identity)
    try:
        yield process
    finally:
        process.kill()


@contextlib.contextmanager
def opened(path: str | Path, flags: int = os.O_RDWR, mode: int = 0o644) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)
