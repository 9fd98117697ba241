"""zcfsd as a test sees it: started on a source and a mount point, asked, watched, and ended.

A mode is an engine and a transport, and whether data is spliced. What a machine does not grant is skipped, with the reason that
`zcfsd --probe` gives; what was skipped is compared at the end of the session with what the probe
grants (conftest.py).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .guard import URING, abort, mounts_below, stacks, umount
from .linux import PATIENCE, wait_for


@dataclass(frozen=True)
class Mode:
    engine: str
    transport: str
    splice: str = "auto"

    def __str__(self) -> str:
        splice = "" if self.splice == "auto" else f"/splice-{self.splice}"
        return f"{self.engine}/{self.transport}{splice}"


MODES = [
    Mode(engine, transport) for engine in ("kernel", "pool", "buffered") for transport in ("dev", "uring")
]
#: every file pinned by its first open for reading
PINNED = Mode("pinned", "dev")
TABLE_MODES = [*MODES, Mode("buffered", "dev", "always"), PINNED]  # of the POSIX table
NEEDS = {"kernel": "passthrough", "pinned": "passthrough", "uring": "fuse_io_uring"}  # names in the probe


@functools.cache
def zcfsd() -> Path | None:
    """The daemon under test, or None."""
    beside = Path(sys.executable).parent / "zcfsd"
    named = os.environ.get("ZCFS_ZCFSD") or (str(beside) if beside.exists() else None)
    found = named or shutil.which("zcfsd")
    return Path(found) if found else None


@functools.cache
def probe() -> dict[str, dict[str, Any]]:
    """What the machine grants, by name; FUSE-over-io_uring is switched on first where we may."""
    with contextlib.suppress(OSError):
        if URING.read_text().strip() != "Y":
            URING.write_text("Y")
    binary = zcfsd()
    if binary is None:
        return {}
    asked = subprocess.run(
        [binary, "--probe", "/tmp"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert asked.returncode == 0, asked.stderr
    return {item["name"]: item for item in json.loads(asked.stdout)}


def why_not(mode: Mode) -> str | None:
    """Why a mode cannot be tested here; None if it can."""
    if zcfsd() is None:
        return "zcfsd is not built (ZCFS_ZCFSD names it)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or forbidden"
    for part in (mode.engine, mode.transport):
        if part in NEEDS and os.geteuid() != 0:
            return f"{part} needs root"
        item = probe().get(NEEDS.get(part, ""))
        if item is not None and item["granted"] is not True:
            return f"{item['name']} is not granted: {item['reason'] or item['value']}"
    return None


@functools.cache
def control_plane() -> str | None:
    """The interpreter that can run the computed tree, or None."""
    if os.environ.get("ZCFS_CONTROL_PLANE"):
        return os.environ["ZCFS_CONTROL_PLANE"]
    check = subprocess.run(
        [sys.executable, "-c", "import pyfuse3, zcfs.fs"], capture_output=True, cwd="/"
    )
    return sys.executable if check.returncode == 0 else None


def runtime_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/run/zcfs")
    own = os.environ.get("XDG_RUNTIME_DIR")
    return Path(own) / "zcfs" if own else Path(f"/tmp/zcfs-{os.geteuid()}")


def _socket_inode(minor: str) -> int:
    """0 when there is none."""
    path = runtime_dir() / f"{minor}.sock"
    return path.stat().st_ino if path.exists() else 0


def ask(minor: str | int, verb: str, body: bytes = b"") -> Any:
    """What the control socket of a mount answers.

    A daemon that is just ending may still listen on the path that the next one takes over.
    """
    for _ in range(3):
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            return _ask(minor, verb, body)
    raise AssertionError(f"the daemon of {minor} resets every connection")


def _ask(minor: str | int, verb: str, body: bytes) -> Any:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(runtime_dir() / f"{minor}.sock"))
        connection.sendall(verb.encode() + b"\n" + body)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return json.loads(answer)


def umount_when_free(path: str) -> None:
    """What was closed is released a moment later: until then the mount is busy."""
    deadline = time.monotonic() + PATIENCE
    while code := umount(path):
        if code != errno.EBUSY or time.monotonic() > deadline:
            raise OSError(code, f"umount: {os.strerror(code)}", path)
        time.sleep(0.005)


EXPECTED = [" INFO zcfs"]  # lines of the log that say nothing bad
if os.geteuid() != 0:
    EXPECTED += ["zcfsd: passthrough: ", "zcfsd: private-mount: "]


@dataclass
class Mount:
    """A running daemon and its mount."""

    source: Path
    path: Path
    process: subprocess.Popen[bytes]
    log: Path
    minor: str
    socket_inode: int = 0  # the next mount may have the same minor, and so the same name
    expected: list[str] = field(default_factory=lambda: list(EXPECTED))
    _read: int = 0
    _closed: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def expect_log(self, *patterns: str) -> None:
        """Lines that match one of these regular expressions are no failure."""
        self.expected += patterns

    def unexpected_log(self) -> list[str]:
        """Lines that came since the last call and that nobody expected."""
        text = self.log.read_bytes()
        end = text.rfind(b"\n") + 1
        fresh = text[self._read : end].decode(errors="replace").splitlines()
        self._read = end
        return [line for line in fresh if not any(re.search(one, line) for one in self.expected)]

    def has_socket(self) -> bool:
        return self.socket_inode != 0 and _socket_inode(self.minor) == self.socket_inode

    def status(self) -> Any:
        return ask(self.minor, "status")

    def stats(self) -> Any:
        return ask(self.minor, "stats")

    def pin(self, *paths: str, verb: str = "pin") -> Any:
        """Pins or unpins (`verb`) files; an entry for each."""
        body = b"".join(os.fsencode(path) + b"\0" for path in paths)
        return ask(self.minor, f"{verb} {len(body)}", body)["pins"]

    def control_plane_pid(self) -> int:
        """Waits until the control plane runs."""
        wait_for(
            "the control plane runs", lambda: self.status()["control_plane"]["state"] == "running"
        )
        pid = int(self.status()["control_plane"]["pid"])
        assert pid > 1
        return pid

    def alive(self) -> bool:
        """Whether the daemon runs; touches nothing of the mount."""
        return self.process.poll() is None

    def mounted(self) -> bool:
        return any(path == str(self.path) for path, _, _ in mounts_below(str(self.path.parent)))

    def kill(self) -> None:
        """End the daemon as a crash does."""
        self.expect_log("fuse device")  # libfuse, in the control plane, of its peer's death
        self.process.kill()
        self.process.wait()

    def unmount(self) -> int:
        """umount; returns the daemon's exit status."""
        umount_when_free(str(self.path))
        return self.process.wait(PATIENCE)

    def close(self) -> list[str]:
        """End it in whatever state it is; returns what was wrong."""
        if self._closed:
            return []
        self._closed = True
        wrong = []
        try:
            if self.process.poll() is None:
                status = self.unmount() if self.mounted() else self.process.wait(PATIENCE)
                if status != 0:
                    wrong.append(f"the daemon exited with {status}")
        except (OSError, subprocess.TimeoutExpired) as error:
            wrong.append(f"no clean end: {error}\n{stacks(self.pid)}")
        finally:
            self._force()
        wrong += [f"unexpected log line: {line}" for line in self.unexpected_log()]
        return wrong

    def _force(self) -> None:
        """Leave nothing behind, however it has to be done."""
        for path, _, minor in mounts_below(str(self.path.parent)):
            if path == str(self.path):
                abort(minor, path)
                umount(path, 2)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class StartError(AssertionError):
    """The daemon did not become ready; the message is its own."""


def command_line(mode: Mode | None, options: Sequence[str], computed: bool) -> list[str]:
    binary = zcfsd()
    assert binary is not None
    command = [str(binary), "--foreground"]
    if mode == PINNED:
        command += ["--engine", "kernel", "--policy", "**=pinned", "--transport", mode.transport]
    elif mode is not None:
        command += ["--engine", mode.engine, "--transport", mode.transport]
        command += ["--splice", mode.splice] if mode.splice != "auto" else []
    if os.geteuid() == 0:
        command.append("--allow-other")
    python = control_plane() if computed else None
    if python:
        command += ["--control-plane", python]
    return command + list(options)


def start(
    source: Path,
    path: Path,
    mode: Mode | None,
    *options: str,
    computed: bool = False,
    environment: dict[str, str] | None = None,
    wrapper: Sequence[str] = (),
) -> Mount:
    """Start the daemon and wait until it is ready. `wrapper` runs it, as `prlimit` would."""
    log = path.with_name(path.name + ".log")
    ready, ready_in = os.pipe()
    command = [*wrapper, *command_line(mode, options, computed), "--ready-fd", str(ready_in)]
    command += [str(source), str(path)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            pass_fds=[ready_in],
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    os.close(ready_in)
    try:
        return _await_ready(source, path, process, log, ready)
    except BaseException:
        for mounted, _, minor in mounts_below(str(path.parent)):
            if mounted == str(path):
                abort(minor, mounted)
                umount(mounted, 2)
        process.kill()
        process.wait()
        raise
    finally:
        os.close(ready)


def _await_ready(
    source: Path, path: Path, process: subprocess.Popen[bytes], log: Path, ready: int
) -> Mount:
    if not select.select([ready], [], [], PATIENCE)[0]:
        raise StartError(f"not ready after {PATIENCE:g} s\n{stacks(process.pid)}")
    line = os.read(ready, 4096).decode(errors="replace")
    if line != "ready\n":
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        raise StartError(f"status {process.returncode}, {line!r}\n{log.read_text()}")
    for mounted, kind, minor in mounts_below(str(path.parent)):
        if mounted == str(path):
            assert kind == "fuse.zcfs", kind
            return Mount(source, path, process, log, minor, _socket_inode(minor))
    raise StartError("the daemon is ready and nothing is mounted")


def start_peer(command: str, source: Path, path: Path) -> Mount:
    """Another program's mount, for comparison: the command names {source} and {mountpoint}."""
    log = path.with_name(path.name + ".log")
    words = [word.format(source=source, mountpoint=path) for word in command.split()]
    with log.open("wb") as out:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    mount = Mount(source, path, process, log, "0", expected=[""])
    wait_for("the peer has mounted", lambda: mount.mounted() or process.poll() is not None)
    assert mount.mounted(), log.read_text()
    return mount


def stop_process(process: subprocess.Popen[Any], signum: int = signal.SIGTERM) -> None:
    """End a helper process of a test and reap it."""
    if process.poll() is None:
        process.send_signal(signum)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
