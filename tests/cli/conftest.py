"""Fixtures of the command line's tests: run mountctl, and unmount whatever a test leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from zcfs import control, mountinfo
from zcfs.mount import unmount
from zcfs.mountinfo import Mount

MOUNTCTL = (sys.executable, "-P", "-m", "zcfs.cli")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def mountctl() -> Run:
    """mountctl(*args): run it to its end."""

    def run(*args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"capture_output": True, "text": True, "timeout": 120, "check": False} | options
        done: subprocess.CompletedProcess[str] = subprocess.run([*MOUNTCTL, *args], **options)
        return done

    return run


@dataclass
class Site:
    """A source directory with a file, and a mount point."""

    base: Path
    run: Run
    pids: list[int] = field(default_factory=list)

    @property
    def source(self) -> Path:
        return self.base / "source"

    @property
    def point(self) -> Path:
        return self.base / "point"

    def mount(self, *options: str) -> Mount:
        done = self.run("mount", *options, self.source, self.point)
        assert done.returncode == 0, done.stderr
        return self.mounted()

    def mounted(self) -> Mount:
        mount = mountinfo.at(str(self.point))
        assert mount is not None
        return mount

    def is_mounted(self) -> bool:
        return mountinfo.at(str(self.point)) is not None

    def json(self, *words: str | Path) -> dict[str, Any]:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def stop(self, pid: int) -> None:
        """SIGSTOP a process until the test ends."""
        self.pids.append(pid)
        os.kill(pid, signal.SIGSTOP)

    def clean(self) -> None:
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue
        while (mount := mountinfo.at(str(self.point))) is not None:
            unmount(mount, force=True)


@pytest.fixture
def site(tmp_path: Path, mountctl: Run) -> Iterator[Site]:
    """An unmounted site; whatever is mounted there at the end goes."""
    made = Site(tmp_path.resolve(), mountctl)
    made.source.mkdir()
    made.point.mkdir()
    (made.source / "file").write_text("content\n")
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture
def mounted(site: Site) -> Site:
    """A mounted site."""
    site.mount()
    return site


def daemon_pid(mount: Mount) -> int:
    return int(control.query(mount, "status")["pid"])


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failing command prints: on stderr, nothing on stdout."""
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr
