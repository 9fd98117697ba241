"""The operations as pyfuse3 calls them, without a session."""

from __future__ import annotations

import errno
import inspect
import os
from collections.abc import Awaitable, Iterator

import pyfuse3
import pytest
import trio
import trio.testing
from pyfuse3 import FUSEError, RequestContext

from zcfs.fs import operations
from zcfs.fs.operations import MAX_HANDLES, Operations
from zcfs.fs.tree import COMPUTED, Directory, File, Tree

pytestmark = pytest.mark.trio

ROOT, STATIC, GROWING, SLOW = (COMPUTED + n for n in range(1, 5))
CTX = RequestContext()


class Source:
    """Makes what the growing file says: each open gets the next text."""

    def __init__(self) -> None:
        self.texts: Iterator[bytes] = iter([b"four", b"a longer text", b"2"])

    async def static(self) -> bytes:
        return b"static"

    async def growing(self) -> bytes:
        return next(self.texts)

    async def slow(self) -> bytes:
        await trio.sleep(10)
        return b"slow"


@pytest.fixture
def ops() -> Operations:
    source = Source()
    files: dict[bytes, File | Directory] = {
        b"static": File(STATIC, source.static, size=6),
        b"growing": File(GROWING, source.growing),
        b"slow": File(SLOW, source.slow),
    }
    return Operations(Tree(Directory(ROOT, files)), first_handle=100)


async def errno_of(call: Awaitable[object]) -> int:
    with pytest.raises(FUSEError) as caught:
        await call
    return caught.value.errno


async def open_file(ops: Operations, nodeid: int) -> int:
    return (await ops.open(nodeid, os.O_RDONLY, CTX)).fh


async def test_no_handler_is_left_to_pyfuse3() -> None:
    """Its defaults raise ENOSYS, which the kernel would remember for the mirror too."""
    handlers = [
        name for name, _ in inspect.getmembers(pyfuse3.Operations, inspect.iscoroutinefunction)
    ]
    assert len(handlers) > 25
    for name in handlers:
        handler = getattr(Operations, name)
        assert handler is not getattr(pyfuse3.Operations, name), name
        assert hasattr(handler, "__wrapped__") or name == "forget", f"{name} is not guarded"


async def test_a_file_is_opened_read_and_released(ops: Operations) -> None:
    info = await ops.open(STATIC, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, CTX)
    assert (info.fh, info.direct_io, info.keep_cache) == (100, True, False)
    assert await ops.read(100, 0, 4096) == b"static"
    assert await ops.read(100, 2, 3) == b"ati"
    assert await ops.read(100, 6, 10) == b""
    assert await ops.read(100, 1 << 40, 10) == b""
    await ops.flush(100)
    await ops.fsync(100, True)
    await ops.release(100)
    assert await errno_of(ops.read(100, 0, 10)) == errno.ESTALE
    await ops.release(100)


@pytest.mark.parametrize(
    "flags",
    [os.O_WRONLY, os.O_RDWR, os.O_ACCMODE, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND],
)
async def test_an_open_for_writing_is_refused(ops: Operations, flags: int) -> None:
    assert await errno_of(ops.open(STATIC, flags, CTX)) == errno.EROFS


async def test_each_open_sees_its_own_moment(ops: Operations) -> None:
    first = await open_file(ops, GROWING)
    second = await open_file(ops, GROWING)
    assert await ops.read(first, 0, 100) == b"four"
    assert await ops.read(second, 0, 100) == b"a longer text"


async def test_size_is_of_the_last_open_and_never_less_than_an_open_one(ops: Operations) -> None:
    async def size() -> int:
        attributes = await ops.getattr(GROWING, CTX)
        assert attributes.st_blocks == (attributes.st_size + 511) // 512
        return attributes.st_size

    assert await size() == 0
    first = await open_file(ops, GROWING)
    assert await size() == 4
    second = await open_file(ops, GROWING)
    assert await size() == 13
    await open_file(ops, GROWING)
    assert await size() == 13
    await ops.release(first)
    await ops.release(second)
    assert await size() == 1


async def test_a_failed_open_leaves_no_handle(ops: Operations) -> None:
    for _ in range(3):
        await open_file(ops, GROWING)
    assert await errno_of(ops.open(GROWING, os.O_RDONLY, CTX)) == errno.EIO
    assert await open_file(ops, STATIC) == 103


async def test_handles_are_bounded(ops: Operations) -> None:
    handles = [await open_file(ops, STATIC) for _ in range(MAX_HANDLES)]
    assert await errno_of(ops.open(STATIC, os.O_RDONLY, CTX)) == errno.ENFILE
    await ops.release(handles[0])
    await open_file(ops, STATIC)


async def test_handles_are_bounded_for_slow_opens_too(
    ops: Operations, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(operations, "MAX_HANDLES", 1)
    outcomes: list[int] = []

    async def attempt() -> None:
        try:
            await open_file(ops, SLOW)
            outcomes.append(0)
        except FUSEError as error:
            outcomes.append(error.errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt)
        nursery.start_soon(attempt)
    assert sorted(outcomes) == [0, errno.ENFILE]


async def test_a_slow_open_delays_nothing_else(
    ops: Operations, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_file, ops, SLOW)
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        await ops.read(await open_file(ops, STATIC), 0, 10)
        assert trio.current_time() == start


async def test_an_unknown_nodeid_is_stale(ops: Operations) -> None:
    unknown = COMPUTED + 999
    for call in (
        ops.getattr(unknown, CTX),
        ops.lookup(unknown, b"a", CTX),
        ops.open(unknown, 0, CTX),
        ops.opendir(unknown, CTX),
        ops.access(unknown, os.R_OK, CTX),
        ops.readlink(unknown, CTX),
        ops.getxattr(unknown, b"user.a", CTX),
        ops.listxattr(unknown, CTX),
        ops.unlink(unknown, b"a", CTX),
        ops.getattr(pyfuse3.ROOT_INODE, CTX),
    ):
        assert await errno_of(call) == errno.ESTALE


async def test_lookup(ops: Operations) -> None:
    assert (await ops.lookup(pyfuse3.ROOT_INODE, b".zcfs", CTX)).st_ino == ROOT
    assert (await ops.lookup(ROOT, b"static", CTX)).st_ino == STATIC
    assert await errno_of(ops.lookup(pyfuse3.ROOT_INODE, b"static", CTX)) == errno.ENOENT
    assert await errno_of(ops.lookup(ROOT, b"absent", CTX)) == errno.ENOENT
    assert await errno_of(ops.lookup(STATIC, b"a", CTX)) == errno.ENOTDIR


@pytest.mark.parametrize(
    ("nodeid", "mode", "expected"),
    [
        (STATIC, os.F_OK, True),
        (STATIC, os.R_OK, True),
        (STATIC, os.X_OK, False),
        (ROOT, os.R_OK | os.X_OK, True),
    ],
)
async def test_access(ops: Operations, nodeid: int, mode: int, expected: bool) -> None:
    assert await ops.access(nodeid, mode, CTX) is expected


async def test_access_for_writing(ops: Operations) -> None:
    assert await errno_of(ops.access(STATIC, os.W_OK, CTX)) == errno.EROFS


async def test_handles_of_another_process_are_unknown() -> None:
    tree = Tree(Directory(ROOT, {b"static": File(STATIC, Source().static)}))
    handles = {await open_file(Operations(tree), STATIC) for _ in range(8)}
    assert len(handles) == 8
    assert all(0 <= handle < 1 << 63 for handle in handles)
