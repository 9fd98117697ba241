"""./mountctl of this checkout, when the tests run from its own .venv."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv", reason="these tests run from another environment"
)


def launch(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "mountctl", *args], capture_output=True, text=True, check=False, cwd="/"
    )


def cpu_seconds() -> float:
    """What our processes that have ended have computed: a busy machine adds nothing to it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_second_run_starts_within_a_second_and_sets_up_nothing() -> None:
    launch("list")
    times = []
    for _ in range(3):
        began = cpu_seconds()
        done = launch("list")
        times.append(cpu_seconds() - began)
        assert (done.returncode, done.stderr) == (0, "")
    assert min(times) < 1.0


def test_status_and_errors_come_through() -> None:
    done = launch("status", "/")
    assert done.returncode == 1
    assert done.stderr.startswith("mountctl: /: no zcfs is mounted there")


def test_runs_what_is_installed_from_any_directory() -> None:
    """The checkout's own zcfs/ has no extension and no daemon: it must not be imported."""
    code = "import zcfs; print(zcfs.__file__)"
    python = ROOT / ".venv" / "bin" / "python"
    done = subprocess.run(
        [python, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "site-packages" in done.stdout
