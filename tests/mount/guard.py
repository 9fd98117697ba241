"""A process of its own that no hang outlives.

A system call on a mount whose daemon hangs cannot be interrupted from inside the process that made it, and a page
fault on such a mount holds Python's global lock. So the time limit of a test is kept out here. When a limit passes, or
when the test process is gone in whatever way, the guard writes down where everything hangs, aborts the FUSE
connections, kills what the session started, and unmounts.

Nothing is registered: what belongs to the session is found. Processes are descendants of the test process, or carry its
tag in their environment; mounts and loop devices lie below its scratch directory. The guard reads /proc/self/mountinfo
and never looks at a path on a FUSE mount. A switch of the machine that the tests may turn, FUSE-over-io_uring, is put back
at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

TAG = "ZCFS_TEST_SESSION"
REPORT, SWEPT = "hang.txt", "swept"
GRACE = 20.0  # seconds a test has to fail after its mounts were aborted
MNT_FORCE, MNT_DETACH = 1, 2
FITHAW = 0xC0045878
LOOP_CLR_FD = 0x4C01
URING = Path("/sys/module/fuse/parameters/enable_uring")


class Guard:
    """The test process's side: starts the guard, and tells it when a test begins and ends."""

    def __init__(self, scratch: Path, tag: str) -> None:
        self.report, self._swept = scratch / REPORT, scratch / SWEPT
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(os.getpid()), tag, str(scratch)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def arm(self, name: str, seconds: float) -> None:
        self._send({"name": name, "seconds": seconds})

    def disarm(self) -> None:
        """The test has ended. After a hang, wait: what starts now would be swept too."""
        while self.report.exists():
            if self._swept.exists():
                self.report.unlink()
                self._swept.unlink()
            time.sleep(0.05)
        self._send({"seconds": None})

    def stop(self) -> None:
        """End the session: sweep what is left and wait until that is done."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _send(self, message: dict[str, object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()


def mounts_below(directory: str) -> list[tuple[str, str, str]]:
    """Mount points below a directory as (path, type, minor of the device), the newest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").split("\n")[:-1]:
        left, right = line.split(" - ", 1)
        fields = left.split()
        path = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        if path.startswith(directory + "/"):
            found.append((path, right.split()[0], fields[2].split(":")[1]))
    return found[::-1]


def children_of(pid: int) -> dict[int, int]:
    """Every process below pid, as {child: parent}."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                stat = Path("/proc", entry, "stat").read_text()
                parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    below: dict[int, int] = {}
    grown = True
    while grown:
        grown = False
        for child, parent in parents.items():
            if child not in below and (parent == pid or parent in below):
                below[child] = parent
                grown = True
    return below


def processes_of(pid: int, tag: str) -> list[int]:
    """Every process that the session started, daemons that left its tree included."""
    mark = f"{TAG}={tag}".encode()
    ours = set(children_of(pid))
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if mark in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    ours.add(int(entry))
    ours -= {pid, os.getpid()} | set(children_of(os.getpid()))
    return sorted(ours)


def stacks(pid: int) -> str:
    """Where each thread of a process waits in the kernel."""
    lines = []
    with contextlib.suppress(OSError):
        command = (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
        lines.append(f"{pid}: {command[:200]}")
        for task in sorted(os.listdir(f"/proc/{pid}/task"), key=int):
            base = Path(f"/proc/{pid}/task/{task}")
            name, state = (base / "stat").read_text().rpartition(")")[0::2]
            wchan = (base / "wchan").read_text() or "?"
            lines.append(f"  {task} {name.partition('(')[2]} {state.split()[0]} {wchan}")
            with contextlib.suppress(OSError):
                lines += [
                    "    " + line.strip() for line in (base / "stack").read_text().splitlines()[:12]
                ]
    return "\n".join(lines)


def abort(minor: str, path: str) -> None:
    """End a FUSE connection: every call that waits on it returns."""
    with contextlib.suppress(OSError):
        Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1")
        return
    umount(path, MNT_FORCE)


def umount(path: str, flags: int = 0) -> int:
    """umount2, or fusermount3 for an ordinary user; returns 0 or an errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not libc.umount2(os.fsencode(path), flags):
        return 0
    if ctypes.get_errno() == errno.EPERM and os.geteuid() != 0 and shutil.which("fusermount3"):
        how = "-uqz" if flags else "-uq"
        done = subprocess.run(["fusermount3", how, "--", path], stderr=subprocess.DEVNULL)
        return errno.EBUSY if done.returncode else 0
    return ctypes.get_errno()


def kill(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def thaw(path: str) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, FITHAW, 0)
        finally:
            os.close(fd)


def detach_loops(scratch: str) -> None:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().startswith(scratch + "/"):
                fd = os.open(f"/dev/{backing.parent.parent.name}", os.O_RDONLY)
                try:
                    fcntl.ioctl(fd, LOOP_CLR_FD, 0)
                finally:
                    os.close(fd)


def sweep(pid: int, tag: str, scratch: str) -> None:
    """Abort, kill, unmount, detach: until nothing of the session is left."""
    for _ in range(100):
        mounts = mounts_below(scratch)
        ours = processes_of(pid, tag)
        if not mounts and not ours:
            break
        for path, kind, minor in mounts:
            if kind.startswith("fuse"):
                abort(minor, path)
            else:
                thaw(path)
        for process in ours:
            kill(process)
        for path, _, _ in mounts:
            umount(path, MNT_DETACH)
        time.sleep(0.05)
    detach_loops(scratch)


def on_hang(pid: int, tag: str, scratch: str, name: str, seconds: float) -> None:
    report = [f"{name}: no end after {seconds:g} s"]
    report += [stacks(process) for process in [pid, *processes_of(pid, tag)]]
    Path(scratch, REPORT).write_text("\n".join(report) + "\n")
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGALRM)
    sweep(pid, tag, scratch)
    Path(scratch, SWEPT).write_text("")


def main(pid: int, tag: str, scratch: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uring = URING.read_text() if URING.exists() else ""
    name, seconds, deadline, fired = "", 0.0, float("inf"), False
    pending = b""
    while True:
        wait = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        if select.select([0], [], [], wait)[0]:
            chunk = os.read(0, 65536)
            if not chunk:
                break
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                message = json.loads(line)
                name, seconds = message.get("name", ""), message["seconds"]
                deadline = float("inf") if seconds is None else time.monotonic() + seconds
                fired = False
        elif not fired:
            on_hang(pid, tag, scratch, name, seconds)
            fired, deadline = True, time.monotonic() + GRACE
        else:
            sys.stderr.write(f"\n{name}: stuck; the test process {pid} is killed\n")
            sys.stderr.write(Path(scratch, REPORT).read_text())
            kill(pid)
            deadline = float("inf")
    sweep(pid, tag, scratch)
    with contextlib.suppress(OSError):
        if uring and URING.read_text() != uring:
            URING.write_text(uring)
    if not mounts_below(scratch):
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
