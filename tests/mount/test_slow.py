"""What is slow delays nothing else: a frozen disk, a source that hangs, opens and locks that wait."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import harness
from .guard import stacks, umount
from .harness import Mount
from .linux import (
    FIFREEZE,
    FITHAW,
    PATIENCE,
    Child,
    blocks_in_kernel,
    can_lease,
    kill_all,
    lock,
    opened,
    wait_for,
)
from .posix import pattern

PROMPT = 15.0  # seconds within which what is not slow must be done, on a busy machine
MANY = 24  # more slow requests than the daemon starts with threads


def promptly(what: str, function: Callable[[], object]) -> object:
    """Run in a child, so that a delay is seen and not suffered."""
    process = Child(function)
    if not process.finished(PROMPT):
        where = stacks(process.pid)
        os.kill(process.pid, signal.SIGKILL)  # it may end only when the block does
        raise AssertionError(f"{what} is delayed\n{where}")
    return process.result()


@contextlib.contextmanager
def stuck(*functions: Callable[[], object], undo: Callable[[], object]) -> Iterator[None]:
    """Children that wait until `undo` lets them go, at the end of the block, however that ends:
    who waits for a request that the daemon has cannot be killed."""
    processes = [Child(function) for function in functions]
    try:
        try:
            for process in processes:
                wait_for(
                    "it waits in the kernel",
                    lambda p=process: p.finished() or blocks_in_kernel(p.pid),
                )
                assert not process.finished(), f"it does not wait: {process.result()}"
            yield
        finally:
            undo()
        for process in processes:
            assert process.finished(PATIENCE), "it still waits"
            process.result()
    finally:
        kill_all(processes)


def read_everything(mounted: Mount, directory: Path) -> None:
    """What must go on: reading, looking and listing, the computed tree, the control socket."""
    assert (directory / "f").read_bytes() == pattern(100000)
    with opened(directory / "f", os.O_RDONLY | os.O_DIRECT) as fd:
        os.pread(fd, 0, 0)
    for path in directory.iterdir():
        path.stat()
    os.statvfs(directory)
    with contextlib.suppress(OSError):
        os.getxattr(directory / "f", "user.none")
    with contextlib.suppress(FileNotFoundError):
        os.stat(directory / f"missing{os.getpid()}")
    mounted.stats()


def test_frozen_source(mount: Callable[..., Mount], disk: Callable[..., Path]) -> None:
    """Every write to the disk waits (FIFREEZE); reads go on."""
    source = disk()
    (source / "f").write_bytes(pattern(100000))
    (source / "g").write_bytes(b"")
    (source / "many").mkdir()
    mounted = mount(source=source, computed=True)
    root = mounted.path
    assert (root / "f").read_bytes() == pattern(100000)
    made = [lambda at=at: (root / "many" / f"new{at}").write_bytes(b"x") for at in range(MANY)]
    changes = [
        lambda: os.chmod(root / "g", 0o600),
        lambda: os.truncate(root / "g", 5000),
        lambda: os.setxattr(root / "g", "user.a", b"x"),
    ]
    with opened(source, os.O_RDONLY) as fd:
        fcntl.ioctl(fd, FIFREEZE, 0)
        with stuck(*made, *changes, undo=lambda: fcntl.ioctl(fd, FITHAW, 0)):
            for _ in range(3):
                promptly("reading", lambda: read_everything(mounted, root))
            if harness.control_plane():
                promptly("the computed tree", (root / ".zcfs/version").read_bytes)
    assert len(os.listdir(source / "many")) == MANY
    assert (source / "g").stat().st_size == 5000


@contextlib.contextmanager
def bindfs(behind: Path, at: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another FUSE filesystem for the length of a block."""
    command = ["bindfs", "-f", "-o", "attr_timeout=0,entry_timeout=0", behind, at]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        wait_for("bindfs has mounted", lambda: os.path.ismount(at))
        yield process
    finally:
        umount(str(at), 2)
        harness.stop_process(process)


@pytest.mark.skipif(not shutil.which("bindfs"), reason="bindfs is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_source_that_hangs_in_part(mount: Callable[..., Mount]) -> None:
    """A filesystem below the source stops answering (its daemon is stopped)."""
    first = mount(computed=True)
    source = first.source.parent / "divided"
    behind = source.parent / "behind"
    for directory in (behind, source / "below" / "slow"):
        directory.mkdir(parents=True)
    for at in range(MANY):
        (behind / f"f{at}").write_bytes(b"slow")
    (source / "f").write_bytes(pattern(100000))
    with bindfs(behind, source / "below/slow") as process:
        mounted = mount(source=source, computed=True)
        root = mounted.path
        assert (root / "below/slow/f0").read_bytes() == b"slow"
        process.send_signal(signal.SIGSTOP)
        try:
            looks = [
                (lambda at=at: (root / "below/slow" / f"f{at}").stat()) for at in range(MANY // 2)
            ]
            reads = [(root / "below/slow" / f"f{at}").read_bytes for at in range(MANY // 2, MANY)]
            with stuck(*looks, *reads, undo=lambda: process.send_signal(signal.SIGCONT)):
                for turn in range(3):
                    promptly("reading", lambda: read_everything(mounted, root))
                    promptly("writing", lambda t=turn: (root / f"new{t}").write_bytes(b"x"))
        finally:
            process.send_signal(signal.SIGCONT)
        assert mounted.close() == []


def hold_lease(path: Path, told: int, kind: int) -> None:
    """Hold a lease on a file, and give it up when told: until then an open that conflicts waits."""
    with opened(path, os.O_RDONLY) as fd:
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        wait_for("whoever wrote the file has it closed", lambda: can_lease(fd, kind))
        os.write(told, b"x")
        signal.sigwait({signal.SIGUSR1})
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def test_open_of_a_leased_file_waits(mount: Callable[..., Mount]) -> None:
    """As in place: an open for writing waits until the holder of the lease has let go."""
    mounted = mount()
    (mounted.path / "f").write_bytes(pattern(100000))
    leased = mounted.path / "leased"
    leased.write_bytes(b"data")
    told, told_in = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    holder = Child(hold_lease, mounted.source / "leased", told_in, fcntl.F_RDLCK)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    os.close(told_in)
    try:
        assert os.read(told, 1) == b"x", holder.result()
        writes = [lambda at=at: put(leased, at) for at in range(MANY)]
        with stuck(*writes, undo=lambda: os.kill(holder.pid, signal.SIGUSR1)):
            promptly("reading", lambda: read_everything(mounted, mounted.path))
            promptly("reading the leased file", leased.read_bytes)
            promptly("writing", lambda: (mounted.path / "new").write_bytes(b"x"))
        holder.result()
    finally:
        holder.kill()
        os.close(told)


def put(path: Path, at: int) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.pwrite(fd, b"x", at)


def test_many_lock_waiters(mount: Callable[..., Mount]) -> None:
    """Waiters for POSIX locks and flocks, many more than threads: nothing else is delayed."""
    mounted = mount(computed=True)
    root = mounted.path
    (root / "f").write_bytes(pattern(100000))
    (root / "locked").write_bytes(b"")

    def posix() -> None:
        with opened(root / "locked") as fd:
            lock(fd, fcntl.F_SETLKW, fcntl.F_WRLCK)

    def flock() -> None:
        with opened(root / "locked") as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)

    def unlock() -> None:
        lock(fd, fcntl.F_SETLK, fcntl.F_UNLCK)
        fcntl.flock(fd, fcntl.LOCK_UN)

    with opened(root / "locked") as fd:
        lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with stuck(*[posix, flock] * 20, undo=unlock):
            for turn in range(3):
                promptly("reading", lambda: read_everything(mounted, root))
                promptly("writing", lambda t=turn: (root / f"new{t}").write_bytes(b"x"))
            if harness.control_plane():
                promptly("the computed tree", (root / ".zcfs/version").read_bytes)


def test_fifo_that_nobody_opens(mount: Callable[..., Mount]) -> None:
    """The application waits for the other end; the daemon does not."""
    mounted = mount()
    (mounted.path / "f").write_bytes(pattern(100000))
    for at in range(MANY):
        os.mkfifo(mounted.path / f"fifo{at}")
    opens = [lambda at=at: os.open(mounted.path / f"fifo{at}", os.O_RDONLY) for at in range(MANY)]

    def open_other_ends() -> None:
        for at in range(MANY):
            os.close(os.open(mounted.path / f"fifo{at}", os.O_WRONLY))

    with stuck(*opens, undo=open_other_ends):
        promptly("reading", lambda: read_everything(mounted, mounted.path))
