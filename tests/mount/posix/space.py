"""Allocation, holes, and copies inside the kernel."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable

from ..linux import (
    COLLAPSE_RANGE,
    INSERT_RANGE,
    KEEP_SIZE,
    PUNCH_HOLE,
    UNSHARE_RANGE,
    ZERO_RANGE,
    fallocate,
    opened,
)
from . import Tree, check, fails, pattern

K64 = 65536


@check()
def fallocate_grows(t: Tree) -> None:
    path = t.file("f", b"data")
    with opened(path) as fd:
        fallocate(fd, 0, 0, 100000)
        status = os.fstat(fd)
        assert status.st_size == 100000
        assert status.st_blocks * 512 >= 100000
        assert os.pread(fd, 100000, 0) == b"data" + bytes(99996)


@check()
def fallocate_keeps_size(t: Tree) -> None:
    with opened(t.file("f", b"data")) as fd:
        fallocate(fd, KEEP_SIZE, 0, 100000)
        assert os.fstat(fd).st_size == 4
        assert os.fstat(fd).st_blocks * 512 >= 100000
        os.pwrite(fd, b"x", 50000)
        assert os.fstat(fd).st_size == 50001


@check()
def fallocate_punches(t: Tree) -> None:
    path = t.file("f", pattern(4 * K64))
    with opened(path) as fd:
        before = os.fstat(fd).st_blocks
        assert os.pread(fd, 10, K64) == pattern(4 * K64)[K64 : K64 + 10]
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, K64, K64)
        wanted = pattern(4 * K64)[:K64] + bytes(K64) + pattern(4 * K64)[2 * K64 :]
        assert os.pread(fd, 4 * K64, 0) == wanted
        assert os.fstat(fd).st_blocks < before
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 3, 1000)
        assert os.pread(fd, 1010, 0) == wanted[:3] + bytes(1000) + wanted[1003:1010]
        assert os.fstat(fd).st_size == 4 * K64
        with fails(errno.EOPNOTSUPP):
            fallocate(fd, PUNCH_HOLE, 0, 10)


@check()
def fallocate_zeroes(t: Tree) -> None:
    with opened(t.file("f", pattern(K64))) as fd:
        fallocate(fd, ZERO_RANGE, 1000, 5000)
        wanted = pattern(K64)[:1000] + bytes(5000) + pattern(K64)[6000:]
        assert os.pread(fd, K64, 0) == wanted
        fallocate(fd, ZERO_RANGE, K64 - 100, 1100)
        assert os.fstat(fd).st_size == K64 + 1000
        fallocate(fd, ZERO_RANGE | KEEP_SIZE, K64, 100000)
        assert os.fstat(fd).st_size == K64 + 1000


def _shifted(t: Tree, mode: int, wanted: bytes) -> None:
    """FUSE in the kernel knows neither of these modes: then nothing may have changed."""
    with opened(t.file("f", pattern(4 * K64))) as fd:
        try:
            fallocate(fd, mode, K64, K64)
        except OSError as error:
            assert error.errno == errno.EOPNOTSUPP and t.mirrored
            wanted = pattern(4 * K64)
        assert os.pread(fd, 9 * K64, 0) == wanted


@check()
def fallocate_collapses(t: Tree) -> None:
    _shifted(t, COLLAPSE_RANGE, pattern(4 * K64)[:K64] + pattern(4 * K64)[2 * K64 :])


@check()
def fallocate_inserts(t: Tree) -> None:
    _shifted(t, INSERT_RANGE, pattern(4 * K64)[:K64] + bytes(K64) + pattern(4 * K64)[K64:])


@check()
def fallocate_refuses(t: Tree) -> None:
    path = t.file("f", b"data")
    with opened(path) as fd:
        for offset, length in ((0, 0), (-1, 10), (0, -1)):
            with fails(errno.EINVAL):
                fallocate(fd, 0, offset, length)
        with fails(errno.EFBIG):
            fallocate(fd, 0, 2**62, 2**62 + 1)
        with fails(errno.EOPNOTSUPP):
            fallocate(fd, 0x8000, 0, 10)
        with fails(errno.EOPNOTSUPP):
            fallocate(fd, UNSHARE_RANGE, 0, 10)
    with opened(path, os.O_RDONLY) as fd, fails(errno.EBADF):
        fallocate(fd, 0, 0, 10)
    with opened(t.path, os.O_RDONLY) as fd, fails(errno.EBADF, errno.EISDIR):
        fallocate(fd, 0, 0, 10)


@check()
def posix_fallocate_then_write(t: Tree) -> None:
    with opened(t / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.posix_fallocate(fd, 0, 1 << 20)
        os.pwrite(fd, b"x", 1 << 19)
        assert os.pread(fd, 3, (1 << 19) - 1) == b"\0x\0"


@check()
def seek_data_and_hole(t: Tree) -> None:
    path = t / "f"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 8 * K64)
        os.pwrite(fd, pattern(K64), 2 * K64)
        os.pwrite(fd, pattern(K64), 5 * K64)
        for start, data, hole in (
            (0, 2 * K64, 0),
            (2 * K64, 2 * K64, 3 * K64),
            (2 * K64 + 5, 2 * K64 + 5, 3 * K64),
            (4 * K64, 5 * K64, 4 * K64),
            (5 * K64, 5 * K64, 6 * K64),
        ):
            assert os.lseek(fd, start, os.SEEK_DATA) == data
            assert os.lseek(fd, start, os.SEEK_HOLE) == hole
        for start in (6 * K64, 8 * K64, 9 * K64):
            with fails(errno.ENXIO):
                os.lseek(fd, start, os.SEEK_DATA)
        with fails(errno.ENXIO):
            os.lseek(fd, 8 * K64, os.SEEK_HOLE)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 5 * K64 + K64


@check()
def seek_hole_at_the_end(t: Tree) -> None:
    with opened(t.file("f", pattern(5000))) as fd:
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 5000
        assert os.lseek(fd, 4999, os.SEEK_DATA) == 4999


def copy(t: Tree, length: int, from_at: int, to_at: int) -> None:
    a, b = t.file("a", pattern(3 * K64)), t.file("b", b"B" * 2 * K64)
    model = bytearray(b"B" * 2 * K64)
    with opened(a, os.O_RDONLY) as source, opened(b) as target:
        left = length
        while left:
            done = length - left
            got = os.copy_file_range(source, target, left, from_at + done, to_at + done)
            assert got > 0
            left -= got
    model[to_at : to_at + length] = pattern(3 * K64)[from_at : from_at + length]
    assert b.read_bytes() == (t.source / "b").read_bytes() == model


@check()
def copy_file_range_between_files(t: Tree) -> None:
    copy(t, K64, 0, 0)
    copy(t, 3 * K64, 0, 0)
    copy(t, 1000, 77, 2 * K64 - 500)


@check()
def copy_file_range_within_a_file(t: Tree) -> None:
    with opened(t.file("f", pattern(2 * K64))) as fd:
        assert os.copy_file_range(fd, fd, 1000, 0, K64) == 1000
        assert os.pread(fd, 1000, K64) == pattern(1000)
        with fails(errno.EINVAL):
            os.copy_file_range(fd, fd, 1000, 0, 500)


@check()
def copy_file_range_moves_positions(t: Tree) -> None:
    with opened(t.file("a", b"0123456789")) as a, opened(t.file("b")) as b:
        assert os.copy_file_range(a, b, 4) == 4
        assert os.copy_file_range(a, b, 100) == 6
        assert os.copy_file_range(a, b, 100) == 0
        assert os.pread(b, 99, 0) == b"0123456789"


@check()
def copy_file_range_sees_unsynced_data(t: Tree) -> None:
    import mmap

    with opened(t.file("a", bytes(8192))) as a, opened(t.file("b", bytes(8192))) as b:
        with mmap.mmap(a, 8192) as memory:
            memory[:] = pattern(8192)
            assert os.pread(b, 8192, 0) == bytes(8192)
            assert os.copy_file_range(a, b, 8192, 0, 0) == 8192
        assert os.pread(b, 8192, 0) == pattern(8192)


@check()
def copy_file_range_to_the_source(t: Tree) -> None:
    """Between two filesystems the kernel may refuse; the bytes are right if not."""
    data = pattern(K64)
    with opened(t.file("a", data)) as a, opened(t.source / "b", os.O_CREAT | os.O_RDWR) as b:
        try:
            got = os.copy_file_range(a, b, K64)
        except OSError as error:
            assert error.errno == errno.EXDEV and t.mirrored
        else:
            assert os.pread(b, K64, 0) == data[:got]


@check()
def copy_file_range_refuses(t: Tree) -> None:
    a, b = t.file("a", b"data"), t.file("b")
    with opened(a, os.O_RDONLY) as source, opened(b, os.O_RDONLY) as target, fails(errno.EBADF):
        os.copy_file_range(source, target, 4)
    with opened(a, os.O_RDONLY) as source, opened(b, os.O_RDWR | os.O_APPEND) as target:
        with fails(errno.EBADF):
            os.copy_file_range(source, target, 4)


def through_pipe(move: Callable[[int, int], int], source: int, target: int, length: int) -> None:
    reader, writer = os.pipe()
    try:
        left = length
        while left:
            filled = os.splice(source, writer, min(left, 16384))
            drained = 0
            while drained < filled:
                drained += move(reader, target)
            left -= filled
    finally:
        os.close(reader)
        os.close(writer)


@check()
def splice_out_and_in(t: Tree) -> None:
    data = pattern(3 * K64)
    with opened(t.file("a", data)) as a, opened(t.file("b")) as b:
        through_pipe(lambda reader, target: os.splice(reader, target, K64), a, b, len(data))
    assert (t / "b").read_bytes() == (t.source / "b").read_bytes() == data


@check()
def sendfile_out_and_in(t: Tree) -> None:
    data = pattern(3 * K64)
    with opened(t.file("a", data)) as a, opened(t.file("b")) as b:
        assert os.sendfile(b, a, 0, len(data)) == len(data)
        assert os.pread(b, len(data), 0) == data
        reader, writer = os.pipe()
        assert os.sendfile(writer, a, 5, 1000) == 1000
        assert os.read(reader, 2000) == data[5:1005]
        os.close(reader)
        os.close(writer)


@check()
def clone_is_refused_or_right(t: Tree) -> None:
    ficlone = 0x40049409
    with opened(t.file("a", pattern(K64))) as a, opened(t.file("b")) as b:
        try:
            fcntl.ioctl(b, ficlone, a)
        except OSError as error:
            assert error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV)
        else:
            assert os.pread(b, K64, 0) == pattern(K64)
