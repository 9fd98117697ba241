"""What every test has: a time limit that ends hangs, and a scratch directory that leaves nothing behind.

A test marked `limit(seconds)` has another limit than DEFAULT_LIMIT. A test that hangs fails with the kernel stacks of
everything that the session had started (mount/guard.py). Test directories are /tmp or /var/tmp, whichever is ext4 or
xfs, or else an ext4 image; ZCFS_TEST_DIR names another place.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from mount import guard

DEFAULT_LIMIT = 180.0  # a hang, and not a machine that is busy
SCRATCH = pytest.StashKey[Path]()
GUARD = pytest.StashKey[guard.Guard]()
FAILED = pytest.StashKey[bool]()


class TestHung(BaseException):
    """Raised in a test when its limit has passed and its mounts were aborted."""

    __test__ = False


def filesystem_of(path: Path) -> str:
    stat = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True)
    return stat.stdout.strip()


def make_scratch() -> Path:
    wanted = os.environ.get("ZCFS_TEST_DIR")
    places = [Path(wanted)] if wanted else [Path(tempfile.gettempdir()), Path("/var/tmp")]
    good = [place for place in places if filesystem_of(place) in ("ext2/ext3", "xfs")]
    scratch = Path(tempfile.mkdtemp(prefix="zcfs-test-", dir=(good or places)[0])).resolve()
    scratch.chmod(0o755)
    return scratch


def mount_image(scratch: Path) -> None:
    """Give the session an ext4 of its own where no test directory is on one."""
    image, store = scratch / "image", scratch / "store"
    store.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 30)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, store], check=True)
    shutil.rmtree(store / "lost+found")


_interruptible = False  # whether a test's own code runs, and not pytest's


def on_alarm(signum: int, frame: object) -> None:
    if _interruptible:
        raise TestHung


def interruptible() -> Iterator[None]:
    global _interruptible
    _interruptible = True
    try:
        return (yield)
    finally:
        _interruptible = False


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_setup() -> Iterator[None]:
    return (yield from interruptible())


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call() -> Iterator[None]:
    return (yield from interruptible())


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown() -> Iterator[None]:
    return (yield from interruptible())


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "limit(seconds): the time a test may take")
    if "s" not in config.option.reportchars:
        config.option.reportchars += "s"
    if config.option.collectonly or getattr(config.option, "help", False):
        return
    tag = uuid.uuid4().hex
    os.environ[guard.TAG] = tag
    scratch = config.stash[SCRATCH] = make_scratch()
    config.stash[GUARD] = guard.Guard(scratch, tag)
    if filesystem_of(scratch) not in ("ext2/ext3", "xfs") and os.geteuid() == 0:
        mount_image(scratch)
    if not config.option.basetemp:
        config.option.basetemp = str(scratch / "pytest")
    signal.signal(signal.SIGALRM, on_alarm)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure(config: pytest.Config) -> None:
    if GUARD in config.stash:
        config.stash[GUARD].stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    marker = item.get_closest_marker("limit")
    limit = marker.args[0] if marker else DEFAULT_LIMIT
    keeper = item.config.stash[GUARD]
    keeper.arm(item.nodeid, limit)
    try:
        return (yield)
    finally:
        keeper.disarm()
        if FAILED in item.stash:
            forget_failure()


def forget_failure() -> None:
    """Free what a failed test left open. Else that is a warning, and so a failure, of a later test."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Show where everything hung beside the failure that the abort caused."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    hang = item.config.stash[GUARD].report
    if report.failed and hang.exists():
        report.sections.append(("Where everything hung", hang.read_text()))
    return report


@pytest.fixture(scope="session")
def scratch(request: pytest.FixtureRequest) -> Path:
    """The session's directory, on a filesystem that can do what the tests need."""
    base: Path = request.config.stash[SCRATCH]
    return base / "store" if (base / "store").exists() else base
