"""POSIX, OFD and flock locks, between processes on the mount and between the mount and the source."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from ..linux import (
    PATIENCE,
    Child,
    blocks_in_kernel,
    can_lock,
    child,
    lock,
    opened,
    run_child,
    wait_for,
)
from . import Tree, add, check, fails

READ, WRITE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


def try_posix(path: Path, kind: int = WRITE, start: int = 0, length: int = 0) -> bool:
    """Whether another process gets a POSIX lock."""

    def work() -> bool:
        with opened(path) as fd:
            return can_lock(fd, kind, start, length)

    got: bool = run_child(work)
    return got


def try_ofd(path: Path, kind: int = WRITE) -> bool:
    with opened(path) as fd:
        try:
            lock(fd, fcntl.F_OFD_SETLK, kind)
        except BlockingIOError:
            return False
        lock(fd, fcntl.F_OFD_SETLK, NONE)  # what the last close releases is free a moment later
        return True


def try_flock(path: Path, kind: int = fcntl.LOCK_EX) -> bool:
    with opened(path) as fd:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(fd, fcntl.LOCK_UN)  # as in try_ofd
        return True


@check()
def posix_lock_conflicts(t: Tree) -> None:
    path = t.file("f", b"data")
    with opened(path) as fd:
        lock(fd, fcntl.F_SETLK, WRITE)
        assert not try_posix(path)
        assert not try_posix(path, READ)
        lock(fd, fcntl.F_SETLK, READ)
        assert not try_posix(path)
        assert try_posix(path, READ)
        lock(fd, fcntl.F_SETLK, NONE)
        assert try_posix(path)


@check()
def posix_lock_ranges(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        lock(fd, fcntl.F_SETLK, WRITE, 10, 10)
        assert try_posix(path, WRITE, 0, 10)
        assert try_posix(path, WRITE, 20, 0)
        assert not try_posix(path, WRITE, 19, 1)
        assert not try_posix(path, READ, 0, 11)
        lock(fd, fcntl.F_SETLK, NONE, 12, 4)
        assert try_posix(path, WRITE, 12, 4)
        assert not try_posix(path, WRITE, 11, 2)
        lock(fd, fcntl.F_SETLK, READ, 0, 12)
        assert try_posix(path, READ, 0, 12)
        assert not try_posix(path, WRITE, 11, 1)
        assert not try_posix(path, READ, 16, 1)


@check()
def posix_lock_far_ranges(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        lock(fd, fcntl.F_SETLK, WRITE, 2**62, 100)
        assert not try_posix(path, WRITE, 2**62 + 99, 1)
        assert try_posix(path, WRITE, 2**62 + 100, 0)
        lock(fd, fcntl.F_SETLK, WRITE, 2**63 - 1, 1)
        assert not try_posix(path, WRITE, 2**63 - 1, 0)


@check()
def posix_lock_asked_for(t: Tree) -> None:
    path = t.file("f")

    def ask(kind: int, start: int, length: int) -> tuple[int, ...]:
        with opened(path) as other:
            return lock(other, fcntl.F_GETLK, kind, start, length)

    with opened(path) as fd:
        assert lock(fd, fcntl.F_GETLK, WRITE)[0] == NONE
        lock(fd, fcntl.F_SETLK, WRITE, 10, 20)
        assert lock(fd, fcntl.F_GETLK, WRITE)[0] == NONE
        assert run_child(ask, READ, 0, 0) == (WRITE, 10, 20, os.getpid())
        assert run_child(ask, WRITE, 0, 10)[0] == NONE


@check()
def posix_lock_asked_for_in_place(t: Tree) -> None:
    """A lock held on the source is reported on the mount."""
    path = t.file("f")
    with opened(t.source / "f") as fd:
        lock(fd, fcntl.F_SETLK, READ, 5, 6)
        with opened(path) as other:
            kind, start, length, _ = lock(other, fcntl.F_OFD_GETLK, WRITE, 0, 0)
        assert (kind, start, length) == (READ, 5, 6)


@check()
def posix_lock_of_own_process(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as a, opened(path) as b:
        lock(a, fcntl.F_SETLK, WRITE)
        lock(b, fcntl.F_SETLK, WRITE)
        assert not try_posix(path)


@check()
def posix_lock_released_by_close_of_any_handle(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        lock(fd, fcntl.F_SETLK, WRITE)
        assert not try_posix(path)
        with opened(path, os.O_RDONLY):
            pass
        assert try_posix(path)


@check()
def posix_lock_released_by_close_of_a_copy(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        copy = os.dup(fd)
        lock(fd, fcntl.F_SETLK, WRITE)
        os.close(copy)
        assert try_posix(path)


def hold(path: Path, take: Callable[[int], object], ready: int, leave: int) -> None:
    """In a child: take a lock, say so, and keep it until told to go."""
    fd = os.open(path, os.O_RDWR)
    take(fd)
    os.write(ready, b"x")
    os.read(leave, 1)


@contextlib.contextmanager
def holder(path: Path, take: Callable[[int], object]) -> Iterator[Child]:
    """Another process that holds a lock for the length of a block."""
    ready, ready_in = os.pipe()
    leave, leave_in = os.pipe()
    try:
        with child(hold, path, take, ready_in, leave) as process:
            os.close(ready_in)
            assert os.read(ready, 1) == b"x", process.result()
            yield process
    finally:
        for fd in (ready, leave, leave_in):
            os.close(fd)


def posix_write(fd: int) -> None:
    lock(fd, fcntl.F_SETLK, WRITE)


def ofd_write(fd: int) -> None:
    lock(fd, fcntl.F_OFD_SETLK, WRITE)


def flock_exclusive(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _released_by_death(
    take: Callable[[int], object], free: Callable[[Path], bool]
) -> Callable[[Tree], None]:
    def run(t: Tree) -> None:
        path = t.file("f")
        for signum in (signal.SIGKILL, signal.SIGTERM):
            with holder(path, take) as process:
                assert not free(path)
                process.kill(signum)
                # the last close may be answered after the process is gone
                wait_for("the lock of a dead process is free", lambda: free(path))

    return run


def _excludes(
    take: Callable[[int], object], free: Callable[[Path], bool], from_mount: bool
) -> Callable[[Tree], None]:
    """A lock taken on one side binds the other side."""

    def run(t: Tree) -> None:
        t.file("f", b"data")
        mine, other = t / "f", t.source / "f"
        if not from_mount:
            mine, other = other, mine
        assert free(other)
        with holder(mine, take) as process:
            assert not free(other)
            process.kill()
            wait_for("the lock is released", lambda: free(other))

    return run


LOCKS: dict[str, tuple[Callable[[int], object], Callable[[Path], bool]]] = {
    "posix": (posix_write, try_posix),
    "ofd": (ofd_write, try_ofd),
    "flock": (flock_exclusive, try_flock),
    "posix_against_ofd": (posix_write, try_ofd),
    "ofd_against_posix": (ofd_write, try_posix),
}
for _name, (_take, _free) in LOCKS.items():
    add(f"{_name}_lock_released_by_death", _released_by_death(_take, _free))
    add(f"{_name}_lock_on_mount_binds_source", _excludes(_take, _free, True))
    add(f"{_name}_lock_on_source_binds_mount", _excludes(_take, _free, False))


@check()
def posix_lock_released_by_exit(t: Tree) -> None:
    path = t.file("f")

    def work() -> None:
        lock(os.open(path, os.O_RDWR), fcntl.F_SETLK, WRITE)

    run_child(work)
    wait_for("the lock of an ended process is free", lambda: try_posix(path))


@check()
def posix_lock_not_inherited(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        lock(fd, fcntl.F_SETLK, WRITE)
        assert not run_child(can_lock, fd)
        assert not try_posix(path), "the child's close released its parent's lock"


@check()
def posix_lock_upgrade_and_downgrade(t: Tree) -> None:
    path = t.file("f")
    with holder(path, lambda fd: lock(fd, fcntl.F_SETLK, READ)), opened(path) as fd:
        lock(fd, fcntl.F_SETLK, READ)
        with fails(errno.EAGAIN, errno.EACCES):
            lock(fd, fcntl.F_SETLK, WRITE)
        assert not try_posix(path)


@check()
def posix_lock_needs_the_right_handle(t: Tree) -> None:
    path = t.file("f")
    with opened(path, os.O_RDONLY) as fd, fails(errno.EBADF):
        lock(fd, fcntl.F_SETLK, WRITE)
    with opened(path, os.O_WRONLY) as fd, fails(errno.EBADF):
        lock(fd, fcntl.F_SETLK, READ)
    with opened(path, os.O_RDONLY) as fd:
        lock(fd, fcntl.F_SETLK, READ)
        assert not try_posix(path)


@check(root=True)
def posix_write_lock_by_a_user(t: Tree) -> None:
    """The daemon's own lock is taken with the user's handle, not with what the daemon may do."""
    path = t.file("f", owner=1000, mode=0o600)

    def work() -> bool:
        with opened(path, os.O_WRONLY) as fd:
            lock(fd, fcntl.F_SETLK, WRITE)
            return (os.fork() == 0 and os._exit(0) is None) or os.wait()[1] == 0

    assert run_child(work, uid=1000)
    path.chmod(0o400)
    with opened(path, os.O_RDONLY) as fd:
        lock(fd, fcntl.F_SETLK, READ)


@contextlib.contextmanager
def lock_waiter(work: Callable[..., object], *args: object) -> Iterator[Child]:
    """A process that waits for a lock; it tells us before it does. For those that get a signal:
    the daemon must have the request by then, the kernel may lose the signal otherwise."""
    told, told_in = os.pipe()
    try:
        with child(work, *args, told_in) as waiter:
            os.close(told_in)
            assert os.read(told, 1) == b"x", waiter.result()
            wait_for("the waiter sleeps", lambda: blocks_in_kernel(waiter.pid))
            assert not waiter.finished(0.1)
            yield waiter
    finally:
        os.close(told)


def _open_and_wait(path: Path, told: int) -> None:
    with opened(path) as fd:
        os.write(told, b"x")
        lock(fd, fcntl.F_SETLKW, WRITE)


def _wait_lock(path: Path, kind: int) -> str:
    with opened(path) as fd:
        lock(fd, fcntl.F_SETLKW, kind)
        return "locked"


@check()
def posix_lock_waits_and_wakes(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        lock(fd, fcntl.F_SETLK, WRITE)
        with child(_wait_lock, path, WRITE) as waiter:
            wait_for("the waiter sleeps", lambda: blocks_in_kernel(waiter.pid))
            assert not waiter.finished(0.05)
            lock(fd, fcntl.F_SETLK, NONE)
            assert waiter.finished(PATIENCE), "the waiter was not woken"
            assert waiter.result() == "locked"


@check()
def posix_lock_waits_for_the_source(t: Tree) -> None:
    path = t.file("f")
    with opened(t.source / "f") as fd:
        lock(fd, fcntl.F_SETLK, WRITE)
        with child(_wait_lock, path, READ) as waiter:
            assert not waiter.finished(0.05)
            lock(fd, fcntl.F_SETLK, NONE)
            assert waiter.finished(PATIENCE), "the waiter was not woken"
            waiter.result()


@check()
def source_waits_for_a_lock_of_the_mount(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        lock(fd, fcntl.F_SETLK, WRITE)
        with child(_wait_lock, t.source / "f", READ) as waiter:
            assert not waiter.finished(0.05)
            lock(fd, fcntl.F_SETLK, NONE)
            assert waiter.finished(PATIENCE), "the waiter was not woken"
            waiter.result()


@check()
def posix_lock_wait_is_interrupted(t: Tree) -> None:
    """A signal with a handler ends F_SETLKW with EINTR, and the lock is not taken later."""
    path = t.file("f")

    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    def work(told: int) -> str:
        signal.signal(signal.SIGUSR1, interrupt)
        with opened(path) as fd:
            try:
                os.write(told, b"x")
                lock(fd, fcntl.F_SETLKW, WRITE)
            except Interrupted:
                return "interrupted"
        return "locked"

    with opened(path) as fd:
        lock(fd, fcntl.F_SETLK, WRITE)
        with lock_waiter(work) as waiter:
            os.kill(waiter.pid, signal.SIGUSR1)
            assert waiter.finished(PATIENCE), "the signal did not end the wait"
            assert waiter.result() == "interrupted"
        lock(fd, fcntl.F_SETLK, NONE)
        assert try_posix(path), "the interrupted wait took the lock"


@check()
def posix_lock_waiter_is_killed(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        lock(fd, fcntl.F_SETLK, WRITE)
        with lock_waiter(_open_and_wait, path) as waiter:
            waiter.kill()
        lock(fd, fcntl.F_SETLK, NONE)
        wait_for("a dead waiter holds nothing", lambda: try_posix(path))


@check()
def posix_lock_many_waiters(t: Tree) -> None:
    """More waiters than the daemon has threads, and another file that is locked meanwhile."""
    path, other = t.file("f"), t.file("g")
    with contextlib.ExitStack() as stack, opened(path) as fd:
        lock(fd, fcntl.F_SETLK, WRITE)
        waiters = [stack.enter_context(child(_wait_lock, path, WRITE)) for _ in range(12)]
        for waiter in waiters:
            wait_for("the waiter sleeps", lambda pid=waiter.pid: blocks_in_kernel(pid))
        assert try_posix(other)
        assert try_flock(other)
        lock(fd, fcntl.F_SETLK, NONE)
        for waiter in waiters:
            assert waiter.finished(PATIENCE), "a waiter was not woken"
            waiter.result()


@check()
def posix_lock_counter(t: Tree) -> None:
    """Processes add to a number in a file, each under the lock."""
    path = t.file("f", b"0")

    def work() -> None:
        for _ in range(50):
            with opened(path) as fd:
                lock(fd, fcntl.F_SETLKW, WRITE)
                number = int(os.pread(fd, 20, 0))
                os.pwrite(fd, b"%d" % (number + 1), 0)

    for worker in [Child(work) for _ in range(4)]:
        worker.result()
    assert path.read_bytes() == b"200"


@check()
def posix_lock_counter_on_mount_and_source(t: Tree) -> None:
    t.file("f", b"%020d" % 0)

    def work(path: Path) -> None:
        for _ in range(50):
            with opened(path) as fd:
                lock(fd, fcntl.F_SETLKW, WRITE)
                number = int(os.pread(fd, 20, 0))
                os.pwrite(fd, b"%020d" % (number + 1), 0)

    for worker in [Child(work, side / "f") for side in (t.path, t.source) * 2]:
        worker.result()
    assert int((t.source / "f").read_bytes()) == 200


@check()
def posix_lock_deadlock_is_found(t: Tree) -> None:
    """Two processes that wait for each other: one of them has EDEADLK. No mount finds that (docs/limits.md)."""
    if t.mirrored:
        return
    a, b = t.file("a"), t.file("b")
    held, held_in = os.pipe()
    start, start_in = os.pipe()

    def work(first: Path, second: Path) -> str:
        signal.alarm(30)
        with opened(first) as mine, opened(second) as theirs:
            lock(mine, fcntl.F_SETLK, WRITE)
            os.write(held_in, b"x")
            os.read(start, 1)
            try:
                lock(theirs, fcntl.F_SETLKW, WRITE)
            except OSError as error:
                return "deadlock" if error.errno == errno.EDEADLK else str(error)
            return "locked"

    workers = [Child(work, a, b), Child(work, b, a)]
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.kill)
        for _ in workers:
            os.read(held, 1)
        os.write(start_in, b"xx")
        results = sorted(worker.result() for worker in workers)
    for fd in (held, held_in, start, start_in):
        os.close(fd)
    assert results == ["deadlock", "locked"]


@check()
def ofd_lock_belongs_to_the_handle(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        lock(fd, fcntl.F_OFD_SETLK, WRITE)
        assert not try_ofd(path)
        with opened(path, os.O_RDONLY):
            pass
        assert not try_ofd(path), "the close of another handle released it"
        copy = os.dup(fd)
        os.close(copy)
        assert not try_ofd(path)
    assert try_ofd(path)


@check()
def ofd_lock_is_inherited(t: Tree) -> None:
    path = t.file("f")

    def work(fd: int) -> None:
        lock(fd, fcntl.F_OFD_SETLK, WRITE)

    with opened(path) as fd:
        run_child(work, fd)
        assert not try_ofd(path)
        assert not try_posix(path)


@check()
def ofd_lock_waits(t: Tree) -> None:
    path = t.file("f")

    def work() -> str:
        with opened(path) as fd:
            lock(fd, fcntl.F_OFD_SETLKW, WRITE)
            return "locked"

    with opened(path) as fd:
        lock(fd, fcntl.F_OFD_SETLK, WRITE)
        with child(work) as waiter:
            wait_for("the waiter sleeps", lambda: blocks_in_kernel(waiter.pid))
            assert not waiter.finished(0.05)
            lock(fd, fcntl.F_OFD_SETLK, NONE)
            assert waiter.finished(PATIENCE), "the waiter was not woken"
            waiter.result()


@check(writes_what_is_read=True)
def flock_shared_and_exclusive(t: Tree) -> None:
    path = t.file("f")
    with opened(path, os.O_RDONLY) as fd:
        fcntl.flock(fd, fcntl.LOCK_SH)
        assert try_flock(path, fcntl.LOCK_SH)
        assert not try_flock(path)
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert not try_flock(path, fcntl.LOCK_SH)
        fcntl.flock(fd, fcntl.LOCK_UN)
        assert try_flock(path)


@check()
def flock_does_not_conflict_with_posix(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert try_posix(path)
        with opened(path) as other:
            lock(other, fcntl.F_SETLK, WRITE)
            assert not try_posix(path)
            assert not try_flock(path)


@check()
def flock_follows_the_handle(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with opened(path):
            pass
        copy = os.dup(fd)
        os.close(copy)
        run_child(os.close, fd)
        assert not try_flock(path)
    wait_for("the last close released it", lambda: try_flock(path))


@check()
def flock_waits(t: Tree) -> None:
    path = t.file("f")

    def work() -> str:
        with opened(path) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)
            return "locked"

    with opened(path) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with child(work) as waiter:
            wait_for("the waiter sleeps", lambda: blocks_in_kernel(waiter.pid))
            assert not waiter.finished(0.05)
            fcntl.flock(fd, fcntl.LOCK_UN)
            assert waiter.finished(PATIENCE), "the waiter was not woken"
            waiter.result()


@check()
def flock_on_directory(t: Tree) -> None:
    """FUSE asks its daemon for directory locks too, and Mercurial, apt and dpkg take them."""
    d = t.directory("d")
    with opened(d, os.O_RDONLY) as a, opened(d, os.O_RDONLY) as b:
        fcntl.flock(a, fcntl.LOCK_EX)
        with fails(errno.EWOULDBLOCK):
            fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(a, fcntl.LOCK_UN)
        fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)


@check()
def locks_survive_unlink_and_rename(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        lock(fd, fcntl.F_SETLK, WRITE)
        path.rename(t / "g")
        assert not try_posix(t / "g")
        os.unlink(t / "g")
        lock(fd, fcntl.F_SETLK, NONE)
        lock(fd, fcntl.F_SETLK, WRITE)
        fcntl.flock(fd, fcntl.LOCK_EX)


@check()
def locks_of_hard_links_are_one(t: Tree) -> None:
    path = t.file("f")
    os.link(path, t / "l")
    with opened(path) as fd:
        lock(fd, fcntl.F_SETLK, WRITE)
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert not try_posix(t / "l")
        assert not try_flock(t / "l")


@check()
def locks_by_the_hundred(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        for at in range(300):
            lock(fd, fcntl.F_SETLK, WRITE, at * 10, 5)
        assert not try_posix(path, WRITE, 2990, 1)
        assert try_posix(path, WRITE, 2995, 5)
    assert try_posix(path)
