"""What becomes of a handler's failures."""

from __future__ import annotations

import errno
import logging
from typing import NoReturn

import pytest
import trio
import trio.testing
from pyfuse3 import FUSEError

from zcfs.fs.control import ControlError
from zcfs.fs.guard import guarded

pytestmark = pytest.mark.trio


class Handlers:
    deadline = 15.0

    @guarded
    async def add(self, a: int, b: int) -> int:
        return a + b

    @guarded
    async def fail(self, error: BaseException) -> NoReturn:
        raise error

    @guarded
    async def hang(self) -> None:
        await trio.sleep_forever()


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, bool]]:
    """Text, and whether a traceback follows."""
    return [
        (record.getMessage(), record.exc_info is not None)
        for record in caplog.records
        if record.levelno >= logging.WARNING
    ]


async def test_a_result_passes(caplog: pytest.LogCaptureFixture) -> None:
    assert await Handlers().add(1, b=2) == 3
    assert messages(caplog) == []


@pytest.mark.parametrize(
    ("error", "code", "log"),
    [
        (FUSEError(errno.ENOENT), errno.ENOENT, []),
        (RuntimeError("bug"), errno.EIO, [("fail failed", True)]),
        (OSError(errno.ENOENT, "inner"), errno.EIO, [("fail failed", True)]),
        (ControlError("no answer"), errno.EIO, [("fail: no answer", False)]),
        (ExceptionGroup("two", [ValueError()]), errno.EIO, [("fail failed", True)]),
    ],
)
async def test_a_failure_becomes_an_errno_and_a_log_line(
    error: Exception, code: int, log: list[tuple[str, bool]], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FUSEError) as caught:
        await Handlers().fail(error)
    assert caught.value.errno == code
    assert messages(caplog) == log


async def test_a_handler_that_hangs_ends_at_its_deadline(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    start = trio.current_time()
    with pytest.raises(FUSEError) as caught:
        await Handlers().hang()
    assert caught.value.errno == errno.EIO
    assert trio.current_time() - start == pytest.approx(Handlers.deadline)
    assert messages(caplog) == [("hang took more than 15 s", False)]


async def test_cancellation_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await Handlers().hang()
    assert scope.cancelled_caught
    assert messages(caplog) == []
