"""The pool engine's memory: never more than the pool's size and 64 MiB, whatever is asked of it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import require
from .harness import Mode, Mount

MIB = 1 << 20
POOL_MIB, MORE_MIB = 32, 64
LOAD = [
    "fio", "--name=load", "--filename=f", "--bs=1m", "--direct=1", "--ioengine=psync",
    "--numjobs=96", "--thread", "--group_reporting", "--size=128m", "--time_based",
    "--runtime=2", "--fallocate=none",
]  # fmt: skip


def resident_mib(pid: int) -> float:
    """Resident memory of a process, pages that are shared counted by share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


@pytest.mark.limit(120)
@pytest.mark.skipif(not shutil.which("fio"), reason="fio is not installed")
@pytest.mark.parametrize("rw", ["randread", "randrw"])
@pytest.mark.parametrize("transport", ["dev", "uring"])
def test_memory_is_bounded(start: Callable[..., Mount], transport: str, rw: str) -> None:
    """Far more requests at a time than threads that a small pool may have, each of 1 MiB."""
    mounted = start(require(Mode("pool", transport)), "--pool-size", f"{POOL_MIB}M")
    (mounted.source / "f").write_bytes(bytes(128 * MIB))
    most = 0.0
    with subprocess.Popen([*LOAD, f"--rw={rw}"], cwd=mounted.path, stdout=subprocess.PIPE) as load:
        while load.poll() is None:
            most = max(most, resident_mib(mounted.pid))
            time.sleep(0.05)
    assert load.returncode == 0
    assert POOL_MIB / 2 < most <= POOL_MIB + MORE_MIB
