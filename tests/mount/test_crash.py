"""The daemon or its control plane dies, is stopped, or is told to end, under load."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import harness
from .guard import abort
from .harness import Mode, Mount
from .linux import PATIENCE, Child, can_lock, kill_all, lock, opened, wait_for
from .posix import pattern

ENDED = (
    errno.ENOTCONN,
    errno.ECONNABORTED,
    errno.ECANCELED,
    errno.EIO,
    errno.ENODEV,
    errno.ESTALE,
)


def work(base: Path, who: int) -> None:
    """One turn of everything that an application does."""
    path = base / f"w{who}"
    path.write_bytes(pattern(20000, who))
    with opened(path) as fd:
        os.pwrite(fd, b"more", 100)
        os.fsync(fd)
        assert os.pread(fd, 4, 100) == b"more"
    os.rename(path, base / f"v{who}")
    assert (base / f"v{who}").stat().st_size == 20000
    os.listdir(base)
    os.mkdir(base / f"d{who}")
    os.rmdir(base / f"d{who}")
    os.unlink(base / f"v{who}")


def work_until_error(base: Path, who: int) -> int:
    while True:
        try:
            work(base, who)
        except OSError as error:
            return error.errno or 0


def work_until_told(base: Path, who: int, stop: int) -> float:
    """Work until the pipe `stop` ends; returns the longest time of a turn."""
    worst = 0.0
    import select

    while not select.select([stop], [], [], 0)[0]:
        start = time.monotonic()
        work(base, who)
        worst = max(worst, time.monotonic() - start)
    return worst


@contextlib.contextmanager
def workers(*processes: Child) -> Iterator[tuple[Child, ...]]:
    try:
        yield processes
    finally:
        kill_all(processes)


def test_daemon_killed_under_load(
    mount: Callable[..., Mount], start: Callable[..., Mount], mode: Mode
) -> None:
    """Callers get an error, nobody hangs, and the source can be mounted again."""
    mounted = mount()
    (mounted.source / "kept").write_bytes(pattern(100000))
    with workers(*(Child(work_until_error, mounted.path, who) for who in range(6))) as busy:
        wait_for(
            "they work", lambda: mounted.stats()["requests"].get("UNLINK", {}).get("count", 0) > 20
        )
        fd = os.open(mounted.path / "kept", os.O_RDONLY)
        mounted.kill()
        for process in busy:
            assert process.finished(PATIENCE), "a caller hangs after the daemon's death"
            assert process.result() in ENDED
        with pytest.raises(OSError) as raised:
            os.open(mounted.path / "kept", os.O_RDONLY)
        assert raised.value.errno in ENDED
        with contextlib.suppress(OSError):  # close tells of the daemon's end as well
            os.close(fd)
    mounted.close()
    assert not mounted.mounted()
    again = start(mode, source=mounted.source)
    assert (again.path / "kept").read_bytes() == pattern(100000)
    work(again.path, 99)


def test_daemon_killed_while_callers_wait(mount: Callable[..., Mount]) -> None:
    """A lock's waiter has an error too, and the lock of the dead mount is free on the source."""
    mounted = mount()
    path = mounted.path / "f"
    path.write_bytes(b"")

    def wait() -> int:
        try:
            lock(os.open(path, os.O_RDWR), fcntl.F_SETLKW, fcntl.F_WRLCK)
        except OSError as error:
            return error.errno or 0
        return 0

    fd = os.open(path, os.O_RDWR)
    lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK)
    with workers(*(Child(wait) for _ in range(3))) as waiters:
        assert not waiters[0].finished(0.1)
        mounted.kill()
        for process in waiters:
            assert process.finished(PATIENCE), "a waiter hangs after the daemon's death"
            assert process.result() in (*ENDED, errno.EINTR)
    with contextlib.suppress(OSError):
        os.close(fd)
    with opened(mounted.source / "f") as fd:
        wait_for("the lock is free on the source", lambda: can_lock(fd))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to abort a connection")
def test_daemon_stopped_and_aborted(mount: Callable[..., Mount], mode: Mode) -> None:
    """What a user can do about a daemon that hangs. What went by io_uring ends with the daemon."""
    mounted = mount()
    (mounted.path / "f").write_bytes(b"")
    mounted.process.send_signal(signal.SIGSTOP)
    with workers(*(Child(work_until_error, mounted.path, who) for who in range(3))) as busy:
        assert not busy[0].finished(0.1)
        abort(mounted.minor, str(mounted.path))
        if mode.transport == "uring":
            mounted.process.kill()
        for process in busy:
            assert process.finished(PATIENCE)
            assert process.result() in ENDED
    mounted.process.send_signal(signal.SIGCONT)
    mounted.process.wait(PATIENCE)  # its session has ended, and so does it
    mounted.expect_log("")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_told_to_end(mount: Callable[..., Mount], signum: int) -> None:
    mounted = mount()
    (mounted.path / "f").write_bytes(b"x")
    mounted.process.send_signal(signum)
    assert mounted.process.wait(PATIENCE) == 0
    assert not mounted.mounted()
    assert not mounted.has_socket()


def test_told_to_end_while_busy(mount: Callable[..., Mount]) -> None:
    """The name goes at once; what is open is closed in order."""
    mounted = mount()
    with opened(mounted.path / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"before")
        mounted.process.send_signal(signal.SIGTERM)
        wait_for("the mount is gone", lambda: not mounted.mounted())
    assert mounted.process.wait(PATIENCE) == 0
    assert (mounted.source / "f").read_bytes() == b"before"


@pytest.mark.skipif(harness.control_plane() is None, reason="no control plane here")
def test_control_plane_killed_under_load(mount: Callable[..., Mount]) -> None:
    """The mirror never waits for it; /.zcfs comes back."""
    mounted = mount(computed=True)
    mounted.expect_log("control plane")
    mounted.control_plane_pid()
    version = (mounted.path / ".zcfs/version").read_bytes()
    stop, stop_in = os.pipe()
    places = (mounted.path, mounted.path, mounted.source)
    with workers(*(Child(work_until_told, at, who, stop) for who, at in enumerate(places))) as busy:
        for turn in range(2):
            os.kill(mounted.control_plane_pid(), signal.SIGKILL)
            restarts = lambda: mounted.status()["control_plane"]["restarts"]
            wait_for("its end is noticed", lambda turn=turn: restarts() == turn + 1)
            wait_for("/.zcfs is back", lambda: read_or_none(mounted) == version)
        os.write(stop_in, b"x")
        *turns, in_place = (process.result() for process in busy)
    os.close(stop)
    os.close(stop_in)
    # a turn syncs, and waits as long as the disk does: so it is compared with one beside the mount
    assert max(turns) < 2.0 + 2 * in_place, f"the mirror stood still for {max(turns):.1f} s"


@pytest.mark.skipif(harness.control_plane() is None, reason="no control plane here")
def test_control_plane_stopped(mount: Callable[..., Mount]) -> None:
    """It hangs with requests in hand: the mirror goes on, and nothing is lost when it wakes up."""
    mounted = mount(computed=True)
    pid = mounted.control_plane_pid()
    version = (mounted.path / ".zcfs/version").read_bytes()
    os.kill(pid, signal.SIGSTOP)
    try:
        readers = [Child((mounted.path / ".zcfs/version").read_bytes) for _ in range(4)]
        with workers(*readers):
            for who in range(5):  # syncs: a busy disk must not take as long as a hang counts
                work(mounted.path, who)
            assert not readers[0].finished()
            os.kill(pid, signal.SIGCONT)
            assert [reader.result() for reader in readers] == [version] * 4
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.skipif(harness.control_plane() is None, reason="no control plane here")
def test_unmounted_while_the_control_plane_is_stopped(mount: Callable[..., Mount]) -> None:
    mounted = mount(computed=True)
    pid = mounted.control_plane_pid()
    os.kill(pid, signal.SIGSTOP)
    assert mounted.unmount() == 0
    wait_for("the control plane is gone", lambda: not Path(f"/proc/{pid}").exists())


def read_or_none(mounted: Mount) -> bytes | None:
    try:
        return (mounted.path / ".zcfs/version").read_bytes()
    except OSError:
        return None


@pytest.mark.skipif(harness.control_plane() is None, reason="no control plane here")
def test_killed_daemon_leaves_no_child(mount: Callable[..., Mount]) -> None:
    mounted = mount(computed=True)
    pid = mounted.control_plane_pid()
    mounted.kill()
    wait_for("the control plane is gone", lambda: not Path(f"/proc/{pid}").exists())


def test_reproducible_tree_after_many_kills(start: Callable[..., Mount], mode_once: Mode) -> None:
    """What was synced is there after each of several deaths at random moments."""
    mounted = start(mode_once)
    source, chosen = mounted.source, random.Random(3)
    for turn in range(5):
        synced, synced_in = os.pipe()

        def write(base: Path = mounted.path, told: int = synced_in) -> None:
            for at in range(100000):
                with opened(base / f"f{at % 50}", os.O_CREAT | os.O_RDWR | os.O_TRUNC) as fd:
                    os.write(fd, pattern(3000, at))
                    os.fsync(fd)
                os.write(told, at.to_bytes(4, "little"))

        with workers(Child(write)):
            os.close(synced_in)
            last = -1
            for _ in range(chosen.randrange(5, 60)):
                last = int.from_bytes(os.read(synced, 4), "little")
            mounted.kill()
            while rest := os.read(synced, 4):
                last = int.from_bytes(rest, "little")
        os.close(synced)
        mounted.close()
        assert last > 0
        at = last - 1 if last % 50 else last
        assert (source / f"f{at % 50}").read_bytes() == pattern(3000, at), f"turn {turn}"
        mounted = start(mode_once, source=source)
