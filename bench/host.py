"""What the benchmarks do to the machine, each with its undo: processes, RAM disks, mounts, caches.

Everything that has to be undone is a context manager, so that Ctrl-C and errors unwind it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ZRAM_CONTROL = Path("/sys/class/zram-control")
ENABLE_URING = Path("/sys/module/fuse/parameters/enable_uring")
MIB = 1 << 20


class BenchError(Exception):
    """A measurement or a preparation that failed; the text is one line for the user."""


def run(command: Sequence[str], timeout: float = 600.0, cwd: Path | None = None) -> str:
    """Run to the end and return stdout; a failure is a BenchError with the last line of stderr."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, cwd=cwd, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise BenchError(f"{Path(command[0]).name} exited {done.returncode}: {lines[-1]}")
    return done.stdout


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll every 5 ms; a BenchError names `what` when the time is over."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise BenchError(f"waited {seconds:g} s for {what}")
        time.sleep(0.005)


def is_mounted(path: Path) -> bool:
    """From mountinfo, so that a mount with a dead daemon does not hang us."""
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="replace") as table:
        return any(line.split(" ", 5)[4] == str(path) for line in table)


def unmount(path: Path) -> None:
    """Unmount, lazily when something still holds the mount."""
    for flags in ([], [], ["-l"]):
        if not is_mounted(path):
            return
        with suppress(BenchError):
            run(["umount", *flags, str(path)], timeout=30)
            return
        time.sleep(0.3)


def stop(process: subprocess.Popen[bytes], seconds: float = 5.0) -> None:
    """Wait for a process of ours that should be ending, then make it."""
    for sign in (None, signal.SIGTERM, signal.SIGKILL):
        if sign is not None:
            process.send_signal(sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def drop_caches(what: int = 3) -> None:
    """1: page cache, 2: dentries and inodes (FORGET to a FUSE daemon), 3: both."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text(str(what), encoding="ascii")


def descendants(pid: int) -> list[int]:
    """The process and all that it started, and they started."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def pss_mib(pid: int) -> float:
    """Proportional set size of a process tree, in MiB."""
    total_kib = 0
    for member in descendants(pid):
        with suppress(OSError), Path(f"/proc/{member}/smaps_rollup").open() as rollup:
            total_kib += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    return total_kib / 1024


@contextmanager
def zram_device(size: str) -> Iterator[Path]:
    """A new RAM block device of `size` ("3G"); the device is removed at the end."""
    try:
        number = int((ZRAM_CONTROL / "hot_add").read_text())
    except OSError as error:
        raise BenchError(f"no RAM block device: {error} (use --store disk)") from error
    knobs = Path(f"/sys/block/zram{number}")
    try:
        (knobs / "disksize").write_text(size, encoding="ascii")
        yield Path(f"/dev/zram{number}")
    finally:
        (knobs / "reset").write_text("1", encoding="ascii")
        (ZRAM_CONTROL / "hot_remove").write_text(str(number), encoding="ascii")


@contextmanager
def ext4_on_zram(at: Path, size: str, inodes: int | None = None) -> Iterator[Path]:
    """ext4 on a RAM block device, mounted at `at`; `inodes` when the default is too few."""
    with zram_device(size) as device:
        options = ["-N", str(inodes)] if inodes else []
        lazy = "lazy_itable_init=0,lazy_journal_init=0"  # no background writes while we measure
        run(["mkfs.ext4", "-q", "-F", "-E", lazy, *options, str(device)])
        at.mkdir(parents=True, exist_ok=True)
        run(["mount", str(device), str(at)])
        try:
            yield at
        finally:
            wait_unmounted(at)


def wait_unmounted(at: Path) -> None:
    """Unmount for certain: the device below is going to be reset."""
    for _ in range(50):
        with suppress(BenchError):
            run(["umount", str(at)], timeout=30)
            return
        time.sleep(0.2)
    raise BenchError(f"{at} stays busy; unmount it, then reset its zram device")


@contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    """A directory of our own on the machine's disk, removed at the end."""
    at = parent / f"zcfs-bench-{os.getpid()}"
    at.mkdir(parents=True)
    try:
        yield at
    finally:
        shutil.rmtree(at, ignore_errors=True)


@contextmanager
def fuse_over_uring(wanted: bool) -> Iterator[bool]:
    """Switch FUSE-over-io_uring on for the run when asked to; yields whether it is on."""
    before = ENABLE_URING.read_text().strip() if ENABLE_URING.exists() else "absent"
    if wanted and before == "N":
        ENABLE_URING.write_text("Y", encoding="ascii")
    try:
        yield before == "Y" or (wanted and before == "N")
    finally:
        if wanted and before == "N":
            ENABLE_URING.write_text("N", encoding="ascii")
