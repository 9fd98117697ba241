"""run: the command's own status, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from zcfs import control
from zcfs.cli.run import run_command

from .conftest import MOUNTCTL, Site, one_line


@pytest.fixture(autouse=True)
def temp(site: Site, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory of the test's own: it must be empty afterwards."""
    place = site.base / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return place


def left(temp: Path) -> list[str]:
    return [
        *os.listdir(temp),
        *(m.mountpoint for m in control.mounts() if str(temp) in m.mountpoint),
    ]


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("sh", "-c", 'cat "$ZCFS_MNT/file"'), 0),
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -9 $$"), 137),
        (("/nosuch/program",), 127),
        (("/",), 126),
    ],
)
def test_status(site: Site, temp: Path, command: tuple[str, ...], status: int) -> None:
    done = site.run("run", site.source, "--", *command)
    assert done.returncode == status, done.stderr
    assert done.stdout == ("content\n" if status == 0 else "")
    assert left(temp) == []


def test_options_and_a_dash_in_the_command(site: Site, temp: Path) -> None:
    done = site.run(
        "run", "--read-only", site.source, "--", "sh", "-c", 'touch "$ZCFS_MNT/x"', "--", "-y"
    )
    assert done.returncode != 0
    assert "Read-only" in done.stderr
    assert left(temp) == []


def test_a_source_that_is_missing(site: Site, temp: Path) -> None:
    done = site.run("run", site.base / "missing", "--", "true")
    assert done.returncode in (1, 2)
    assert str(site.base / "missing") in one_line(done)
    assert left(temp) == []


def test_foreground_daemon(site: Site, temp: Path) -> None:
    done = site.run("run", "--foreground", site.source, "--", "sh", "-c", "exit 3")
    assert done.returncode == 3
    assert left(temp) == []


def test_a_command_that_leaves_a_process_behind(site: Site, temp: Path) -> None:
    script = 'exec 2>&- >&- 3< "$ZCFS_MNT/file"; sleep 300 & echo $! > "$OUT"'
    out = site.base / "pid"
    done = site.run(
        "run", site.source, "--", "sh", "-c", script, env={**os.environ, "OUT": str(out)}
    )
    try:
        assert done.returncode == 0
        assert "sleep" in done.stderr
        assert left(temp) == []
    finally:
        os.kill(int(out.read_text()), signal.SIGKILL)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(site: Site, temp: Path, number: signal.Signals, status: int) -> None:
    """Ctrl-C reaches the whole group, as from a terminal; SIGTERM mountctl alone."""
    command = ["sh", "-c", "echo ready; exec sleep 60"]
    with subprocess.Popen(
        [*MOUNTCTL, "run", site.source, "--", *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        if number == signal.SIGINT:
            os.killpg(child.pid, number)
        else:
            child.send_signal(number)
        assert child.wait(30) == status
    assert left(temp) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_command_starts(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The command may run already, and its caller know that, before Popen has returned."""
    start = subprocess.Popen

    def started_and_signalled(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        child: subprocess.Popen[bytes] = start(*args, **options)
        os.kill(os.getpid(), number)
        return child

    monkeypatch.setattr(subprocess, "Popen", started_and_signalled)
    assert run_command(["sleep", "30"], dict(os.environ)) == 128 + number
