"""demo: every step passes, a failing step fails it, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from zcfs import control

from .conftest import MOUNTCTL, Run

pytestmark = [
    pytest.mark.limit(240),
    pytest.mark.skipif(
        not (shutil.which("sqlite3") and shutil.which("fio")), reason="needs sqlite3 and fio"
    ),
]


def left(place: Path) -> list[str]:
    mounts = [m.mountpoint for m in control.mounts() if m.mountpoint.startswith(str(place))]
    return [*os.listdir(place), *mounts]


def test_passes(tmp_path: Path, mountctl: Run) -> None:
    done = mountctl("demo", "--dir", tmp_path, "--runs", "1", timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stdout
    assert done.stdout.count("✓") == 13
    assert left(tmp_path) == []


def test_a_daemon_that_fails(tmp_path: Path, mountctl: Run) -> None:
    env = {**os.environ, "ZCFS_ZCFSD": "/bin/false"}
    done = mountctl("demo", "--dir", tmp_path, env=env)
    assert done.returncode == 1
    assert "✗ mount them" in done.stdout
    assert left(tmp_path) == []


def test_ctrl_c(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*MOUNTCTL, "demo", "--dir", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, process_group=0, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as child:  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            if "mount them" in line:
                break
        os.killpg(child.pid, signal.SIGINT)
        child.communicate(timeout=60)
        assert child.returncode == 130
    assert left(tmp_path) == []
