"""Fixtures of the mount tests: modes, mounts, and the account of what was skipped."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("mount.posix")

from . import harness
from .guard import mounts_below, thaw
from .harness import MODES, TABLE_MODES, Mode, Mount

SKIPPED: dict[Mode, str] = {}
_numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--peer", metavar="COMMAND", help="run the POSIX table on another program's mount"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        peer = metafunc.config.getoption("--peer")
        places = ["bare", "peer"] if peer else ["bare", *TABLE_MODES]
        metafunc.parametrize("place", places, ids=str, indirect=True, scope="session")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What the machine grants must not have been skipped; in CI nothing may be missing at all."""
    if not SKIPPED or os.geteuid() != 0:
        return
    granted = {name for name, item in harness.probe().items() if item["granted"] is True}
    wrong = []
    for mode, reason in SKIPPED.items():
        needed = {
            harness.NEEDS[part] for part in (mode.engine, mode.transport) if part in harness.NEEDS
        }
        if needed <= granted and (harness.zcfsd() or os.environ.get("CI")):
            wrong.append(f"{mode} was skipped although the machine grants it: {reason}")
        elif os.environ.get("CI") and harness.zcfsd() is None:
            wrong.append(f"{mode} was skipped: {reason}")
    if wrong:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        for line in wrong:
            reporter.write_line(line, red=True)


def require(mode: Mode) -> Mode:
    """Skip what the machine does not grant."""
    if reason := harness.why_not(mode):
        SKIPPED[mode] = reason
        pytest.skip(reason)
    return mode


@pytest.fixture(scope="session", params=MODES, ids=str)
def mode(request: pytest.FixtureRequest) -> Mode:
    """Each engine × transport."""
    return require(request.param)


@pytest.fixture
def new_directory(scratch: Path) -> Iterator[Callable[[str], Path]]:
    """Makes directories that anybody may search; gone after the test."""
    made: list[Path] = []

    def make(name: str) -> Path:
        path = scratch / f"{name}-{next(_numbers)}"
        path.mkdir(mode=0o755)
        made.append(path)
        return path

    yield make
    for path in made:
        assert not mounts_below(str(path)), f"a mount is left below {path}"
        shutil.rmtree(path, ignore_errors=True)


Starter = Callable[..., Mount]


@pytest.fixture
def start(new_directory: Callable[[str], Path]) -> Iterator[Starter]:
    """Starts a daemon in a mode, on a new source unless one is given; ends it after the test.

    A line in its log that nobody expects is a failure, and so is an end that is not clean.
    """
    made: list[Mount] = []

    def begin(
        mode: Mode | None, *options: str, source: Path | None = None, **more: object
    ) -> Mount:
        base = new_directory("mount")
        path = base / "mnt"
        path.mkdir()
        if source is None:
            source = base / "source"
            source.mkdir()
        made.append(harness.start(source, path, mode, *options, **more))  # type: ignore[arg-type]
        return made[-1]

    yield begin
    wrong = [line for mount in reversed(made) for line in mount.close()]
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def mount(start: Starter, mode: Mode) -> Callable[..., Mount]:
    """`start` in every mode of the machine, and in force, not degraded."""

    def begin(*options: str, **more: object) -> Mount:
        made = start(mode, *options, **more)
        status = made.status()
        got = Mode(status["engine"], status["transport"])
        assert got == mode, f"runs as {got}: {status['degradations']}"
        return made

    return begin


@pytest.fixture(scope="session")
def mode_once() -> Mode:
    """The first mode that the machine grants, for what does not depend on it."""
    for mode in MODES:
        if harness.why_not(mode) is None:
            return mode
    return require(MODES[-1])


@pytest.fixture
def disk(new_directory: Callable[[str], Path]) -> Iterator[Callable[..., Path]]:
    """Makes ext4 filesystems of their own, on loop devices: to fill, to freeze, to break."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists() or not shutil.which("mkfs.ext4"):
        pytest.skip("loop devices need root, /dev/loop-control and mkfs.ext4")
    made: list[Path] = []

    def make(megabytes: int = 64, options: str = "loop,noatime") -> Path:
        base = new_directory("disk")
        image, path = base / "image", base / "disk"
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        path.mkdir()
        done = subprocess.run(["mount", "-o", options, image, path], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no loop mount: {done.stderr.strip()}")
        shutil.rmtree(path / "lost+found")
        made.append(path)
        return path

    yield make
    for path in made:
        thaw(str(path))
        harness.umount_when_free(str(path))
