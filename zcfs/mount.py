"""Mounting and unmounting: starts the daemon zcfsd and waits until it serves; ends it again.

    options = Options(engine="kernel", read_only=True)
    with mounted("/srv/data", "/mnt", options) as mount:
        print(mount.device)

A daemon reports on a pipe (--ready-fd): `ready`, or `error: MESSAGE`. A mount is unmounted through
umount2(2) by root and through fusermount3 by anybody else, always in a child process, because that
call waits for the daemon when there are pages to write back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zcfs import control, mountinfo
from zcfs.errors import BusyError, DaemonError, UsageError, ZcfsError
from zcfs.holders import Holder, holders
from zcfs.mountinfo import Mount

ENGINES = ("auto", "kernel", "pool", "buffered")
TRANSPORTS = ("auto", "dev", "uring")
IO = ("io_uring", "aio", "threads")
LOCKS = ("source", "local")
SPLICE = ("auto", "always", "never")

READY_TIMEOUT = 60.0  #: seconds for zcfsd to mount and answer
EXIT_TIMEOUT = 10.0  #: seconds for zcfsd to end when it could not mount
EXIT_NOTICE = 5.0  #: seconds until we say that we wait for the daemon of an unmounted mount …
EXIT_PATIENCE = 60.0  #: … and for its end: the blocks of deleted files that it held are freed then
DETACH_TIMEOUT = 30.0  #: seconds for umount2() itself
UMOUNT_WAIT = 5.0  #: seconds to wait for processes with open files

Notice = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How to mount. None leaves a choice to the daemon (or to -o)."""

    engine: str | None = None
    transport: str | None = None
    locks: str | None = None
    read_only: bool = False
    allow_other: bool = False
    threads: int | None = None
    log: str | None = None
    pool_size: str | None = None  #: of the pool engine, as "256M"
    frame_size: str | None = None  #: of its frames, "4K" to "64K"
    io: str | None = None  #: how the pool reads the disk
    splice: str | None = None  #: whether data is moved through pipes: auto, always, never
    policies: tuple[str, ...] = ()  #: "GLOB=ENGINE": the first that matches a path counts
    pins: tuple[str, ...] = ()  #: globs of files that are pinned at their first open
    pin_size: str | None = None  #: memory of pinned files
    mount_options: tuple[str, ...] = ()  #: as after -o: "ro", "fsname=x", "engine=kernel"

    def arguments(self) -> list[str]:
        """The daemon's command line for these options."""
        args = []
        named = {"engine": self.engine, "transport": self.transport, "locks": self.locks,
                 "threads": self.threads, "log": self.log, "pool-size": self.pool_size,
                 "frame-size": self.frame_size, "io": self.io,
                 "splice": self.splice, "pin-size": self.pin_size}  # fmt: skip
        for name, value in named.items():
            if value is not None:
                args += [f"--{name}", str(value)]
        for policy in self.policies:
            args += ["--policy", policy]
        for glob in self.pins:
            args += ["--pin", glob]
        args += ["--read-only"] if self.read_only else []
        args += ["--allow-other"] if self.allow_other else []
        args += ["-o", ",".join(self.mount_options)] if self.mount_options else []
        return args


# --- mounting -------------------------------------------------------------------------------------


def zcfsd() -> str:
    """The daemon's path: $ZCFS_ZCFSD, beside this Python, or on PATH."""
    named = os.environ.get("ZCFS_ZCFSD")
    beside = Path(sys.executable).with_name("zcfsd")
    found = named or (str(beside) if beside.exists() else shutil.which("zcfsd"))
    if not found or not os.access(found, os.X_OK):
        raise ZcfsError(f"{found or 'zcfsd'}: the daemon is not there; ./mountctl builds it")
    return found


def daemon_environment() -> dict[str, str]:
    """The daemon's environment: its Python child must not import from the current directory."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}


class Starting:
    """A daemon on its way: the process, its ready pipe, and what it wrote to stderr."""

    def __init__(self, source: str, mountpoint: str, options: Options, foreground: bool) -> None:
        self.mountpoint = mountpoint
        self.before = mountinfo.at(mountpoint)
        arguments = [*options.arguments(), "--control-plane", sys.executable]
        arguments += ["--foreground"] if foreground else []
        program = zcfsd()
        self.ready, ready_w = os.pipe2(os.O_CLOEXEC)
        self.stderr = os.memfd_create("zcfsd-stderr", os.MFD_CLOEXEC)
        try:
            # A group of its own: Ctrl-C on the terminal is for us to pass on, or not.
            self.process = subprocess.Popen(
                # --ready-fd first: it is told also of an option that is wrong
                [program, "--ready-fd", str(ready_w), *arguments, "--", source, mountpoint],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=None if foreground else self.stderr, pass_fds=[ready_w],
                env=daemon_environment(), process_group=0,
            )  # fmt: skip
        except OSError as exc:
            self.close()
            raise ZcfsError(f"{program}: {exc.strerror}") from exc
        finally:
            os.close(ready_w)

    def wait_ready(self) -> Mount:
        """Until the mount answers. Raises with the daemon's own message, and leaves no mount."""
        try:
            line = self._read_line()
            mount = mountinfo.at(self.mountpoint)
            if line == "ready" and mount is not None and mount != self.before:
                return mount
            raise self._failure(line)
        except BaseException:
            self._undo()
            raise

    def _read_line(self) -> str:
        """What the daemon reports; empty when it ended without a word."""
        data = b""
        deadline = time.monotonic() + READY_TIMEOUT
        while not data.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.ready], [], [], left)[0]:
                raise DaemonError(f"{self.mountpoint}: zcfsd was not ready in {READY_TIMEOUT:g} s")
            chunk = os.read(self.ready, 4096)
            if not chunk:
                break
            data += chunk
        return data.decode("utf-8", "replace").strip()

    def _failure(self, line: str) -> ZcfsError:
        status: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.process.wait(EXIT_TIMEOUT)
        message = line.removeprefix("error:").strip()
        said = [words for words in self.said() if words != message]
        if line == "ready":
            message = f"{self.mountpoint}: somebody has unmounted it at once"
        elif not line.startswith("error:"):
            message = f"zcfsd ended with status {status}"
        if said:  # a tool's own words, fusermount3's for example
            message += f" ({'; '.join(said)})"
        return (UsageError if status == 2 else DaemonError)(message)

    def said(self) -> list[str]:
        """The lines that the daemon wrote to stderr, without its name."""
        raw = os.pread(self.stderr, 1 << 16, 0).decode("utf-8", "replace")
        return [line.removeprefix("zcfsd: ") for line in raw.splitlines() if line.strip()]

    def _undo(self) -> None:
        """End the daemon, and take away a mount that it may have made."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(EXIT_TIMEOUT)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        mount = mountinfo.at(self.mountpoint)
        if mount is not None and mount != self.before:
            with contextlib.suppress(ZcfsError):
                unmount(mount, lazy=True)

    def close(self) -> None:
        os.close(self.ready)
        os.close(self.stderr)


def check_free(point: str) -> None:
    """Refuse a mount point that has a mount of ours already, before anybody stat()s it."""
    mount = mountinfo.at(point)
    if mount is not None and control.is_ours(mount):
        raise ZcfsError(f"{point}: already mounted, from {mount.source}; mountctl umount it first")


def start(source: str, mountpoint: str, options: Options, notice: Notice = lambda _: None) -> Mount:
    """Mount `source` on `mountpoint`; returns when the mount answers. `notice` gets warnings."""
    return _start(source, mountpoint, options, notice, foreground=False)[0]


def start_foreground(
    source: str, mountpoint: str, options: Options
) -> tuple[Mount, subprocess.Popen[bytes]]:
    """As start(), but the daemon stays a child of this process and logs to its stderr."""
    return _start(source, mountpoint, options, lambda _: None, foreground=True)


def _start(
    source: str, mountpoint: str, options: Options, notice: Notice, *, foreground: bool
) -> tuple[Mount, subprocess.Popen[bytes]]:
    point = mountinfo.locate(mountpoint)
    check_free(point)
    starting = Starting(source, point, options, foreground)
    try:
        mount = starting.wait_ready()
        if not foreground:
            starting.process.wait()  # what stays is in the background
            for line in starting.said():
                notice(line)
        return mount, starting.process
    finally:
        starting.close()


def wait_foreground(process: subprocess.Popen[bytes], announce: Callable[[], None]) -> int:
    """Until a foreground daemon ends, passing signals on to it; returns its exit status."""
    try:
        with _passing_signals(process):
            announce()
            return process.wait()
    except BaseException:
        process.terminate()  # it unmounts
        process.wait()
        raise


@contextlib.contextmanager
def _passing_signals(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """What is meant to end us ends the daemon, and we wait for that."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {
        number: signal.signal(number, lambda number, _: process.send_signal(number))
        for number in numbers
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def mounted(
    source: str,
    mountpoint: str,
    options: Options,
    notice: Notice = lambda _: None,
    *,
    foreground: bool = False,
) -> Iterator[Mount]:
    """A mount for the length of a block. Unmounts lazily, and says so, if somebody holds it."""
    mount, process = _start(source, mountpoint, options, notice, foreground=foreground)
    try:
        yield mount
    finally:
        with _no_interrupt():
            _end(mount, notice)
            if foreground:
                process.wait()


def _end(mount: Mount, notice: Notice) -> None:
    try:
        unmount(mount)
    except BusyError as exc:
        notice(str(exc))
        unmount(mount, lazy=True)


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Cleaning up is not to be interrupted by a second Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


# --- unmounting -----------------------------------------------------------------------------------

_UMOUNT2 = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
failed = libc.umount2(os.fsencode(sys.argv[1]), int(sys.argv[2]))
sys.exit(ctypes.get_errno() if failed else 0)
"""
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8


def unmount(
    mount: Mount,
    *,
    wait: float = UMOUNT_WAIT,
    lazy: bool = False,
    force: bool = False,
    notice: Notice = lambda _: None,
) -> None:
    """Unmount, and return when the daemon has ended.

    Processes with open files get `wait` seconds to close them; then BusyError names all that hold
    the mount. `lazy` takes the mount out of sight at once and leaves the daemon to its holders.
    `force` aborts the connection and kills the daemon: for one that hangs.
    """
    pid = _daemon_pid(mount)
    pidfd = _pidfd(pid)
    held = holders(mount.device) if lazy and not force else []
    try:
        if pid is None or force:
            _remove_socket(mount, force)
        if force:
            _abort(mount, pid)
        _detach_patiently(mount, wait, lazy or force, notice)
        if held:
            notice(f"{mount.mountpoint}: its daemon stays until this ends: {_some(held)}")
        elif pidfd is not None:
            _wait_exit(mount, pid, pidfd, notice)
    finally:
        if pidfd is not None:
            os.close(pidfd)


def _daemon_pid(mount: Mount) -> int | None:
    """The pid of the daemon; None when it is dead (or belongs to somebody else)."""
    with contextlib.suppress(ZcfsError):
        pid = control.query(mount, "status", timeout=2.0).get("pid")
        if isinstance(pid, int):
            return pid
    with contextlib.suppress(ZcfsError, OSError), control.connect(mount, timeout=2.0) as sock:
        pid = control.peer(sock)[0]  # it hangs: the kernel still knows who listens
        return pid if Path(f"/proc/{pid}/comm").read_text().startswith("zcfsd") else None
    return None


def _pidfd(pid: int | None) -> int | None:
    with contextlib.suppress(OSError):
        return None if pid is None else os.pidfd_open(pid)
    return None


def _remove_socket(mount: Mount, force: bool) -> None:
    """Take away a dead daemon's sockets, while its mount still keeps the device number taken."""
    path = control.socket_path(mount)
    if path is None:
        return
    try:
        control.connect(mount, timeout=2.0).close()
        stale = force
    except (ZcfsError, OSError):
        stale = True
    for each in (path, path.with_suffix(".lease")) if stale else ():
        with contextlib.suppress(OSError):
            each.unlink()


def _abort(mount: Mount, pid: int | None) -> None:
    """End a connection whose daemon does not: every waiting caller gets an error."""
    with contextlib.suppress(OSError):
        Path(f"/sys/fs/fuse/connections/{mount.minor}/abort").write_text("1")
    if pid is not None:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _detach_patiently(mount: Mount, wait: float, lazy: bool, notice: Notice) -> None:
    """Detach; while files are open, try again for `wait` seconds."""
    deadline = time.monotonic() + wait
    told = False
    while True:
        if _detach(mount, lazy):
            return
        found = holders(mount.device)
        hopeless = found and not any(holder.may_finish for holder in found)
        if hopeless or time.monotonic() >= deadline:
            raise BusyError(_busy(mount, found))
        if found and not told:
            told = True
            notice(f"{mount.mountpoint}: in use: {_some(found)}; waiting up to {wait:g} s")
        time.sleep(0.1)


def _busy(mount: Mount, found: list[Holder]) -> str:
    others = "" if os.geteuid() == 0 else " (root sees everybody's)"
    unseen = f"by something that /proc does not show{others}, perhaps a mount below it"
    who = _some(found) if found else unseen
    return f"{mount.mountpoint}: in use: {who}; end it, or unmount with --lazy"


def _some(found: list[Holder]) -> str:
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return "; ".join(map(str, found[:5])) + more


def _detach(mount: Mount, lazy: bool) -> bool:
    """Unmount once. False when the mount is in use."""
    top = mountinfo.at(mount.mountpoint)
    if top is None:
        return True  # somebody else was faster
    if top.id != mount.id:
        raise ZcfsError(f"{mount.mountpoint}: {top.fstype} is mounted over it; unmount that first")
    return _detach_root(mount, lazy) if os.geteuid() == 0 else _detach_user(mount, lazy)


def _detach_root(mount: Mount, lazy: bool) -> bool:
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
    command = [sys.executable, "-I", "-S", "-c", _UMOUNT2, mount.mountpoint, str(flags)]
    code = _run_detach(mount, command)[0]
    if code not in (0, errno.EBUSY):
        reason = os.strerror(code) if code > 0 else f"killed by signal {-code}"
        raise ZcfsError(f"{mount.mountpoint}: cannot unmount: {reason}")
    return code == 0


def _detach_user(mount: Mount, lazy: bool) -> bool:
    if shutil.which("fusermount3") is None:
        raise ZcfsError("fusermount3 is missing: install the package fuse3, or unmount as root")
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mount.mountpoint]
    code, said = _run_detach(mount, command)
    if code != 0 and "busy" not in said.lower():
        raise ZcfsError(f"{mount.mountpoint}: {said.strip() or 'fusermount3 failed'}")
    return code == 0


def _run_detach(mount: Mount, command: list[str]) -> tuple[int, str]:
    env = {**os.environ, "LC_ALL": "C"}
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, env=env,
    )  # fmt: skip
    try:
        _, said = child.communicate(timeout=DETACH_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise DaemonError(
            f"{mount.mountpoint}: {control.HUNG}: it has pages to write; umount --force loses them"
        ) from None
    return child.returncode, said


def _wait_exit(mount: Mount, pid: int | None, pidfd: int, notice: Notice) -> None:
    if select.select([pidfd], [], [], EXIT_NOTICE)[0]:
        return
    notice(f"{mount.mountpoint}: unmounted; waiting for its daemon (pid {pid}) to end")
    if not select.select([pidfd], [], [], EXIT_PATIENCE - EXIT_NOTICE)[0]:
        raise DaemonError(
            f"{mount.mountpoint}: unmounted, but its daemon (pid {pid}) has not ended within "
            f"{EXIT_PATIENCE:g} s; end it with kill -9 {pid}"
        )
