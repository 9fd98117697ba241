"""The copy ledger against what can be seen from outside: system calls by strace, and CPU time."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from . import harness
from .harness import Mode, Mount
from .linux import PATIENCE, opened, wait_for

CALLS = "read,write,readv,writev,pread64,pwrite64,preadv,pwritev,preadv2,pwritev2,splice"
SIZE = 8 << 20
PIECE = 128 << 10
DEV_MODES = [Mode("buffered", "dev"), Mode("buffered", "dev", "always"), Mode("pool", "dev")]
URING_MODES = [Mode("buffered", "uring"), Mode("pool", "uring")]
MISSING = shutil.which("strace") is None


@contextmanager
def traced(mount: Mount, to: Path) -> Iterator[None]:
    """Has strace write down the calls that move bytes, of all threads, while the block runs."""
    command = ["strace", "-f", "-q", "-p", str(mount.pid), "-e", f"trace={CALLS}", "-o", str(to)]
    with subprocess.Popen([*command, "-s", "0"], stderr=subprocess.PIPE) as tracer:
        try:
            wait_for("strace is attached", lambda: all_traced(mount.pid, tracer.pid))
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(PATIENCE)


def all_traced(pid: int, tracer: int) -> bool:
    wanted = f"TracerPid:\t{tracer}\n"
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    return all(wanted in (task / "status").read_text() for task in tasks)


def moved(trace: Path) -> tuple[int, int, int]:
    """Bytes of the calls by their results: copied, spliced; and how many large calls there were.

    Calls that moved less than a page are headers, answers without data, and other requests.
    """
    copied = spliced = calls = 0
    for line in trace.read_text().splitlines():
        match = re.search(r"(?:(\w+)\(|<\.\.\. (\w+) resumed>).* = (\d+)$", line)
        if match is None or int(match[3]) < 4096:
            continue
        calls += 1
        if (match[1] or match[2]) == "splice":
            spliced += int(match[3])
        else:
            copied += int(match[3])
    return copied, spliced, calls


def read_all(path: Path) -> None:
    """By O_DIRECT: each request is what was asked for, and comes to the daemon."""
    with opened(path, os.O_RDONLY | os.O_DIRECT) as fd:
        buffer = mmap.mmap(-1, PIECE)  # aligned, for where the disk itself is asked
        for at in range(0, SIZE, PIECE):
            assert os.preadv(fd, [buffer], at) == PIECE


def write_all(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_DIRECT) as fd:
        for at in range(0, SIZE, PIECE):
            assert os.pwrite(fd, b"w" * PIECE, at) == PIECE


def ledger(mount: Mount, engine: str, direction: str) -> dict[str, Any]:
    found: dict[str, Any] = mount.stats()["ledger"][engine][direction]
    return found


def grown(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    return {key: after[key] - before[key] for key in before if key != "copies_per_byte"}


def begin(start: Callable[..., Mount], mode: Mode) -> Mount:
    if reason := harness.why_not(mode):
        pytest.skip(reason)
    if MISSING:
        assert not os.environ.get("CI"), "strace is missing"
        pytest.skip("strace is missing")
    mount = start(mode)
    if mode.transport == "uring":
        assert mount.status()["transport"] == "uring"
    (mount.source / "file").write_bytes(b"x" * SIZE)
    read_all(mount.path / "file")  # from here on it is in the pool, or in the page cache
    return mount


@pytest.mark.parametrize("what", ["read", "write"])
@pytest.mark.parametrize("mode", [*DEV_MODES, *URING_MODES], ids=str)
def test_against_strace(
    start: Callable[..., Mount], mode: Mode, what: str, tmp_path: Path
) -> None:
    """Every byte that the ledger says a call has copied or moved is in a call's result."""
    mount = begin(start, mode)
    before = ledger(mount, mode.engine, what)
    with traced(mount, tmp_path / "trace"):
        (read_all if what == "read" else write_all)(mount.path / "file")
    seen = grown(before, ledger(mount, mode.engine, what))
    copied, spliced, calls = moved(tmp_path / "trace")
    assert seen["requests"] == SIZE // PIECE
    assert seen["bytes_delivered"] == SIZE
    wanted = expected(mode, what)
    kernel, moves, user = seen["bytes_copied_kernel"], seen["bytes_moved"], seen["bytes_copied_user"]
    assert (kernel, moves, user) == tuple(times * SIZE for times in wanted[:3])
    assert near(copied, wanted[3] * SIZE)
    assert near(spliced, wanted[4] * SIZE)
    if mode.engine == "buffered" and mode.splice == "auto":
        # and one call a request without data: half of a round trip over /dev/fuse, io_uring_enter
        assert calls == seen["syscalls"] - SIZE // PIECE


def near(got: int, wanted: int) -> bool:
    """Headers are in the calls; and the log, and status, and what strace makes the kernel ask."""
    return wanted <= got <= wanted * 1.01 + (1 << 16)


def expected(mode: Mode, what: str) -> tuple[int, int, int, int, int]:
    """Times that each byte was: copied by the kernel, moved, copied by us; and of strace's calls copied
    and spliced. What io_uring copies is in no such call; what the disk does is DMA and no copy, but
    a write's pread of edges would be one."""
    if mode.transport == "uring":
        if mode.engine == "pool":
            return 1, 0, 1, 0, 0
        return 2, 0, 0, 1, 0
    if mode.splice == "always":
        return 1, 1, 0, 0, 2
    if mode.engine == "pool":
        return (1, 0, 0, 1, 0) if what == "read" else (1, 0, 1, 1, 0)
    return 2, 0, 0, 2, 0


def cpu_seconds(pid: int) -> float:
    """System time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[12]) / os.sysconf("SC_CLK_TCK")


def test_a_copy_costs_time(start: Callable[..., Mount]) -> None:
    """A path with a copy takes the daemon's CPU for each byte; one without, none."""
    spent = {}
    for mode in (Mode("buffered", "dev"), Mode("kernel", "dev")):
        if reason := harness.why_not(mode):
            pytest.skip(reason)
        mount = start(mode)
        (mount.source / "file").write_bytes(b"x" * SIZE)
        before = cpu_seconds(mount.pid)
        for _ in range(64):
            read_all(mount.path / "file")
        spent[mode.engine] = cpu_seconds(mount.pid) - before
        seen = ledger(mount, mode.engine, "read")
        assert seen["bytes_delivered"] == (64 * SIZE if mode.engine == "buffered" else 0)
        if mode.engine == "kernel":
            assert seen["bytes_passthrough"] == 64 * SIZE
            assert "copies_per_byte" not in seen
        else:
            assert seen["copies_per_byte"] == 2
    assert spent["buffered"] > 0.03  # seconds for half a GiB, copied twice
    assert spent["kernel"] < spent["buffered"] / 2
