"""Reading, writing, truncating, appending, mapping."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

from ..linux import Child, Statx, opened, run_child, statx
from . import Tree, check, fails, pattern

BLOCK = 4096


@contextlib.contextmanager
def aligned(data: bytes, skip: int = 0) -> Iterator[memoryview]:
    """A buffer at `skip` bytes after a page boundary."""
    room = mmap.mmap(-1, (len(data) + skip + BLOCK - 1) // BLOCK * BLOCK or BLOCK)
    view = memoryview(room)[skip : skip + len(data)]
    view[:] = data
    try:
        yield view
    finally:
        view.release()
        room.close()


@check()
def read_back_every_size(t: Tree) -> None:
    for size in (0, 1, 511, 512, 4095, 4096, 4097, 65536, 131073, 1 << 20, (1 << 20) + 1, 5 << 20):
        data = pattern(size, size)
        path = t.file("f", data)
        assert path.stat().st_size == size
        assert path.read_bytes() == data
        assert (t.source / "f").read_bytes() == data


@check()
def read_at_odd_offsets(t: Tree) -> None:
    data = pattern(300000)
    with opened(t.file("f", data)) as fd:
        for at, length in (
            (1, 1),
            (4095, 2),
            (100001, 131072),
            (299999, 10),
            (300000, 5),
            (10**6, 5),
        ):
            assert os.pread(fd, length, at) == data[at : at + length]


@check()
def read_written_in_place(t: Tree) -> None:
    data = pattern(1 << 20)
    (t.source / "f").write_bytes(data)
    assert (t / "f").read_bytes() == data


@check()
def vectors(t: Tree) -> None:
    with opened(t / "f", os.O_CREAT | os.O_RDWR) as fd:
        parts = [pattern(size, size) for size in (1, 5000, 0, 4096, 77)]
        assert os.pwritev(fd, parts, 3) == sum(map(len, parts))
        buffers = [bytearray(1000), bytearray(9000)]
        got = os.preadv(fd, buffers, 0)
        assert b"".join(buffers)[:got] == b"\0\0\0" + b"".join(parts)


@check()
def write_beyond_the_end_makes_a_hole(t: Tree) -> None:
    with opened(t / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"end", 100000)
        assert os.fstat(fd).st_size == 100003
        assert os.pread(fd, 100000, 0) == bytes(100000)
        assert os.pread(fd, 9, 99998) == b"\0\0end"


@check()
def overlapping_writes(t: Tree) -> None:
    model = bytearray(50000)
    with opened(t.file("f", bytes(model))) as fd:
        for at in range(0, 45000, 3001):
            data = pattern(4999, at)
            os.pwrite(fd, data, at)
            model[at : at + 4999] = data
        assert os.pread(fd, 60000, 0) == model
    assert (t.source / "f").read_bytes() == model


@check()
def file_position_is_shared_and_moves(t: Tree) -> None:
    with opened(t.file("f", b"0123456789")) as fd:
        assert os.read(fd, 3) == b"012"
        copy = os.dup(fd)
        assert os.read(copy, 3) == b"345"
        os.close(copy)
        assert run_child(os.read, fd, 2) == b"67"
        assert os.lseek(fd, 0, os.SEEK_CUR) == 8
        assert os.lseek(fd, -1, os.SEEK_END) == 9
        with fails(errno.EINVAL):
            os.lseek(fd, -1, os.SEEK_SET)


@check()
def wrong_handle(t: Tree) -> None:
    path = t.file("f", b"x")
    with opened(path, os.O_RDONLY) as fd:
        with fails(errno.EBADF):
            os.write(fd, b"x")
        with fails(errno.EINVAL):
            os.ftruncate(fd, 0)
    with opened(path, os.O_WRONLY) as fd, fails(errno.EBADF):
        os.read(fd, 1)
    with opened(t.path, os.O_RDONLY) as fd, fails(errno.EISDIR):
        os.read(fd, 1)
    with opened(path, os.O_PATH) as fd, fails(errno.EBADF):
        os.read(fd, 1)


@check()
def truncate_down_and_up(t: Tree) -> None:
    path = t.file("f", pattern(10000))
    os.truncate(path, 5001)
    assert path.read_bytes() == pattern(10000)[:5001]
    os.truncate(path, 20000)
    assert path.read_bytes() == pattern(10000)[:5001] + bytes(14999)
    os.truncate(path, 0)
    assert path.read_bytes() == b""


@check()
def truncate_through_one_handle_seen_by_another(t: Tree) -> None:
    path = t.file("f", pattern(20000))
    with opened(path) as a, opened(path) as b:
        assert len(os.pread(b, 99999, 0)) == 20000
        os.ftruncate(a, 3)
        assert os.pread(b, 99, 0) == pattern(3)
        os.ftruncate(b, 6000)
        assert os.pread(a, 9999, 0) == pattern(3) + bytes(5997)


@check()
def truncate_in_the_middle_of_a_hole(t: Tree) -> None:
    path = t / "f"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 1 << 30)
        os.pwrite(fd, b"x", 1 << 20)
        os.ftruncate(fd, (1 << 20) + 5000)
        os.ftruncate(fd, 1 << 21)
        assert os.pread(fd, 10000, 1 << 20) == b"x" + bytes(9999)
        assert path.stat().st_size == 1 << 21


@check()
def no_stale_bytes_after_truncation(t: Tree) -> None:
    with opened(t.file("f", b"S" * 8192)) as fd:
        for size in (1, 511, 4095, 4096, 4097):
            os.pwrite(fd, b"S" * 8192, 0)
            os.ftruncate(fd, size)
            os.ftruncate(fd, 8192)
            assert os.pread(fd, 8192, 0) == b"S" * size + bytes(8192 - size)


@check()
def no_stale_bytes_after_truncation_of_a_mapping(t: Tree) -> None:
    with opened(t.file("f", bytes(8192))) as fd, mmap.mmap(fd, 8192) as memory:
        memory[:] = b"S" * 8192
        os.ftruncate(fd, 100)
        memory[100:200] = b"T" * 100  # beyond the end of the file, in its last page
        memory.flush(0, 4096)
        os.ftruncate(fd, 8192)
        assert os.pread(fd, 8192, 0) == b"S" * 100 + bytes(8092)


@check(writes_what_is_read=True)
def open_truncates(t: Tree) -> None:
    path = t.file("f", pattern(9999))
    with opened(path, os.O_RDONLY) as before, opened(path, os.O_WRONLY | os.O_TRUNC):
        assert os.fstat(before).st_size == 0
        assert os.pread(before, 9, 0) == b""
    with opened(path, os.O_CREAT | os.O_TRUNC | os.O_RDWR) as fd:
        os.write(fd, b"new")
    assert path.read_bytes() == b"new"


@check()
def open_exclusive_by_many(t: Tree) -> None:
    def race() -> int:
        won = 0
        for at in range(50):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(t / f"f{at}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                won += 1
        return won

    racers = [Child(race) for _ in range(4)]
    assert sum(racer.result() for racer in racers) == 50


@check()
def append_goes_to_the_end(t: Tree) -> None:
    path = t.file("f", b"start")
    with opened(path, os.O_WRONLY | os.O_APPEND) as a, opened(path) as b:
        os.write(a, b"1")
        os.pwrite(b, b"2", 6)
        os.lseek(a, 0, os.SEEK_SET)
        os.write(a, b"3")
        assert os.lseek(a, 0, os.SEEK_CUR) == 8
    assert path.read_bytes() == b"start123"


@check()
def append_by_many(t: Tree) -> None:
    """Processes append records at once: none is lost, none is torn."""
    path, writers, records, size = t.file("f"), 4, 100, 333

    def work(who: int) -> None:
        with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            for _ in range(records):
                assert os.write(fd, bytes([who]) * size) == size

    for worker in [Child(work, who) for who in range(1, writers + 1)]:
        worker.result()
    data = path.read_bytes()
    assert len(data) == writers * records * size
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    assert all(chunk == chunk[:1] * size for chunk in chunks)
    assert sorted(chunk[0] for chunk in chunks) == sorted(list(range(1, writers + 1)) * records)


@check()
def append_by_mount_and_source(t: Tree) -> None:
    path = t.file("f")
    for at in range(50):
        side = path if at % 2 else t.source / "f"
        with opened(side, os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"%03d\n" % at)
    assert (t.source / "f").read_bytes() == b"".join(b"%03d\n" % at for at in range(50))


@check()
def append_to_open_file_that_grew_in_place(t: Tree) -> None:
    path = t.file("f", b"a")
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"b")
        with opened(t.source / "f", os.O_WRONLY | os.O_APPEND) as other:
            os.write(other, b"C")
        os.write(fd, b"d")
    assert (t.source / "f").read_bytes() == b"abCd"


@check()
def direct_io(t: Tree) -> None:
    data = pattern(8 * BLOCK)
    with (
        opened(t.file("f", bytes(8 * BLOCK)), os.O_RDWR | os.O_DIRECT) as fd,
        aligned(data) as buffer,
    ):
        assert os.pwritev(fd, [buffer], 0) == len(data)
        with aligned(bytes(2 * BLOCK)) as back:
            assert os.preadv(fd, [back], 3 * BLOCK) == 2 * BLOCK
            assert back == data[3 * BLOCK : 5 * BLOCK]
    assert (t.source / "f").read_bytes() == data


@check()
def direct_io_at_the_end(t: Tree) -> None:
    with opened(t.file("f", pattern(5000)), os.O_RDONLY | os.O_DIRECT) as fd:
        with aligned(b"#" * 4 * BLOCK) as buffer:
            assert os.preadv(fd, [buffer], 0) == 5000
            assert buffer[:5000] == pattern(5000)
            assert os.preadv(fd, [buffer], BLOCK) == 5000 - BLOCK
            assert os.preadv(fd, [buffer], 2 * BLOCK) == 0


@check()
def direct_io_that_extends(t: Tree) -> None:
    with opened(t / "f", os.O_CREAT | os.O_RDWR | os.O_DIRECT) as fd:
        for at in range(4):
            with aligned(pattern(BLOCK, at)) as buffer:
                assert os.writev(fd, [buffer]) == BLOCK
        assert os.fstat(fd).st_size == 4 * BLOCK
    wanted = b"".join(pattern(BLOCK, at) for at in range(4))
    assert (t / "f").read_bytes() == wanted


@check()
def direct_io_misaligned(t: Tree) -> None:
    """EINVAL as the source says, or the right bytes; never others."""
    data = pattern(8 * BLOCK)
    with opened(t.file("f", data), os.O_RDWR | os.O_DIRECT) as fd:
        for offset, length, skip in (
            (1, 100, 0),
            (0, 100, 0),
            (0, BLOCK, 1),
            (100, BLOCK, 512),
            (BLOCK, 512, 0),
        ):
            with aligned(b"#" * length, skip) as buffer:
                try:
                    got = os.preadv(fd, [buffer], offset)
                except OSError as error:
                    assert error.errno == errno.EINVAL
                else:
                    assert buffer[:got] == data[offset : offset + got]
            with aligned(data[offset : offset + length], skip) as buffer:
                try:
                    os.pwritev(fd, [buffer], offset)
                except OSError as error:
                    assert error.errno == errno.EINVAL
    assert (t.source / "f").read_bytes() == data


@check()
def direct_and_cached_handles_agree(t: Tree) -> None:
    path = t.file("f", bytes(4 * BLOCK))
    with opened(path) as cached, opened(path, os.O_RDWR | os.O_DIRECT) as direct:
        for at in range(4):
            os.pwrite(cached, pattern(BLOCK, at), at * BLOCK)
            with aligned(bytes(BLOCK)) as back:
                os.preadv(direct, [back], at * BLOCK)
                assert back == pattern(BLOCK, at)
            with aligned(pattern(BLOCK, at + 100)) as buffer:
                os.pwritev(direct, [buffer], at * BLOCK)
            assert os.pread(cached, BLOCK, at * BLOCK) == pattern(BLOCK, at + 100)


@check()
def direct_switched_on_by_fcntl(t: Tree) -> None:
    import fcntl

    with opened(t.file("f", pattern(BLOCK))) as fd:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        with aligned(bytes(BLOCK)) as back:
            assert os.preadv(fd, [back], 0) == BLOCK
            assert back == pattern(BLOCK)


@check()
def mapping_shared(t: Tree) -> None:
    path = t.file("f", pattern(3 * BLOCK))
    with opened(path) as fd, mmap.mmap(fd, 3 * BLOCK) as memory:
        assert memory[:] == pattern(3 * BLOCK)
        memory[5000:5003] = b"new"
        assert os.pread(fd, 3, 5000) == b"new"
        os.pwrite(fd, b"other", 9000)
        assert memory[9000:9005] == b"other"
        memory.flush()
        assert (t.source / "f").read_bytes()[5000:5003] == b"new"


@check()
def mapping_written_and_never_synced(t: Tree) -> None:
    path = t.file("f", bytes(3 * BLOCK))
    with opened(path) as fd:
        memory = mmap.mmap(fd, 3 * BLOCK)
    memory[BLOCK:] = b"M" * 2 * BLOCK
    memory.close()
    assert path.read_bytes() == bytes(BLOCK) + b"M" * 2 * BLOCK
    assert (t.source / "f").read_bytes() == bytes(BLOCK) + b"M" * 2 * BLOCK


@check()
def mapping_private(t: Tree) -> None:
    path = t.file("f", pattern(BLOCK))
    with opened(path, os.O_RDONLY) as fd, mmap.mmap(fd, BLOCK, access=mmap.ACCESS_COPY) as memory:
        memory[0:4] = b"mine"
        assert memory[0:4] == b"mine"
    assert path.read_bytes() == pattern(BLOCK)


@check()
def mapping_of_read_only_handle(t: Tree) -> None:
    path = t.file("f", pattern(BLOCK))
    with opened(path, os.O_RDONLY) as fd:
        with mmap.mmap(fd, BLOCK, prot=mmap.PROT_READ) as memory:
            assert memory[:] == pattern(BLOCK)
        with fails(errno.EACCES):
            mmap.mmap(fd, BLOCK)


@check()
def mapping_survives_close_and_unlink(t: Tree) -> None:
    path = t.file("f", pattern(BLOCK))
    with opened(path) as fd:
        memory = mmap.mmap(fd, BLOCK)
    path.unlink()
    memory[0:4] = b"more"
    memory.flush()
    assert memory[:8] == b"more" + pattern(BLOCK)[4:8]
    memory.close()


@check()
def mapping_shared_by_processes(t: Tree) -> None:
    path = t.file("f", bytes(BLOCK))

    def work() -> None:
        with opened(path) as fd, mmap.mmap(fd, BLOCK) as theirs:
            theirs[10:14] = b"that"

    with opened(path) as fd, mmap.mmap(fd, BLOCK) as memory:
        run_child(work)
        assert memory[10:14] == b"that"


@check()
def mapping_beyond_the_end(t: Tree) -> None:
    """The rest of the last page reads as zeros; the page after it is a bus error."""
    path = t.file("f", b"x" * 100)

    def touch(at: int) -> int:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGBUS, lambda *_: os._exit(7))
        with opened(path) as fd, mmap.mmap(fd, 100) as memory:
            import ctypes

            start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            value = ctypes.c_ubyte.from_address(start + at).value
            os._exit(value)

    for at, status in ((99, ord("x")), (100, 0), (4095, 0)):
        process = Child(touch, at)
        assert os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]) == status
        os.close(process._reader)


@check()
def mapping_of_direct_handle(t: Tree) -> None:
    path = t.file("f", pattern(BLOCK))
    with opened(path, os.O_RDWR | os.O_DIRECT) as fd, mmap.mmap(fd, BLOCK) as memory:
        assert memory[:] == pattern(BLOCK)
        memory[0:4] = b"both"
        memory.flush()
    assert (t.source / "f").read_bytes()[:4] == b"both"


@check()
def read_into_a_mapping_of_the_same_file(t: Tree) -> None:
    """The destination of a read is the very page that it reads."""
    path = t.file("f", pattern(4 * BLOCK))
    with opened(path) as fd, mmap.mmap(fd, 4 * BLOCK) as memory:
        view = memoryview(memory)
        assert os.preadv(fd, [view[BLOCK : 2 * BLOCK]], 0) == BLOCK
        assert os.pwritev(fd, [view[0:BLOCK]], 2 * BLOCK) == BLOCK
        view.release()
    data = pattern(BLOCK)
    assert path.read_bytes() == data * 3 + pattern(4 * BLOCK)[3 * BLOCK :]


@check()
def madvise_and_fadvise(t: Tree) -> None:
    with opened(t.file("f", pattern(64 * BLOCK))) as fd:
        for advice in (os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_WILLNEED, os.POSIX_FADV_DONTNEED):
            os.posix_fadvise(fd, 0, 0, advice)
        with mmap.mmap(fd, 64 * BLOCK) as memory:
            memory.madvise(mmap.MADV_WILLNEED)
            memory[0] = 1
            memory.madvise(mmap.MADV_DONTNEED)
            assert memory[0] == 1


@check()
def file_of_more_than_4_gib(t: Tree) -> None:
    far = 5 << 30
    path = t / "f"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"far", far)
        os.pwrite(fd, b"near", 0)
        assert os.fstat(fd).st_size == far + 3
        assert os.pread(fd, 9, far) == b"far"
        assert os.pread(fd, 9, far - 4) == b"\0\0\0\0far"
        assert os.lseek(fd, 0, os.SEEK_END) == far + 3
        os.ftruncate(fd, far + BLOCK)
        with mmap.mmap(fd, BLOCK, offset=far) as memory:
            assert memory[:3] == b"far"
    assert (t.source / "f").stat().st_size == far + BLOCK


@check()
def write_beyond_the_largest_file(t: Tree) -> None:
    with opened(t.file("f", b"x")) as fd:
        with fails(errno.EFBIG, errno.EINVAL):
            os.pwrite(fd, b"x", 2**63 - 2)
        with fails(errno.EFBIG):
            os.pwrite(fd, b"x", 2**62)
        with fails(errno.EFBIG, errno.EINVAL):
            os.ftruncate(fd, 2**63 - 1)
        assert os.pread(fd, 9, 0) == b"x"


@check()
def file_size_limit(t: Tree) -> None:
    path = t.file("f")

    def work() -> tuple[int, list[int], int]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000, resource.RLIM_INFINITY))
        codes = []
        with opened(path) as fd:
            wrote = os.pwrite(fd, bytes(9000), 5000)
            for act in (lambda: os.pwrite(fd, b"x", 10000), lambda: os.ftruncate(fd, 10001)):
                try:
                    act()
                except OSError as error:
                    codes.append(error.errno or 0)
        return wrote, codes, os.stat(path).st_size

    assert run_child(work) == (5000, [errno.EFBIG, errno.EFBIG], 10000)


@check()
def file_size_limit_signals(t: Tree) -> None:
    path = t.file("f")

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, lambda *_: os._exit(9))
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
        with opened(path) as fd:
            os.pwrite(fd, b"x", 10)

    process = Child(work)
    assert os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]) == 9
    os.close(process._reader)


@check()
def empty_calls(t: Tree) -> None:
    with opened(t.file("f", b"data")) as fd:
        assert os.write(fd, b"") == 0
        assert os.read(fd, 0) == b""
        assert os.pread(fd, 0, 100) == b""
        assert os.fstat(fd).st_size == 4


@check()
def bad_addresses(t: Tree) -> None:
    import ctypes

    from ..linux import call

    with opened(t.file("f", pattern(10000))) as fd:
        for name in ("pread64", "pwrite64"):
            with fails(errno.EFAULT):
                call(name, fd, ctypes.c_void_p(8), ctypes.c_size_t(100), ctypes.c_int64(0))
        assert os.pread(fd, 10000, 0) == pattern(10000)


@check(writes_what_is_read=True)
def many_open_handles(t: Tree) -> None:
    path = t.file("f", b"x")
    with contextlib.ExitStack() as stack:
        flags = [
            os.O_RDONLY,
            os.O_WRONLY,
            os.O_RDWR,
            os.O_RDWR | os.O_APPEND,
            os.O_RDONLY | os.O_DIRECT,
        ]
        fds = [stack.enter_context(opened(path, flags[at % 5])) for at in range(300)]
        os.pwrite(fds[2], b"y", 0)
        assert os.pread(fds[295], 1, 0) == b"y"


@check()
def synced_writes(t: Tree) -> None:
    for flag in (os.O_SYNC, os.O_DSYNC):
        with opened(t / f"f{flag}", os.O_CREAT | os.O_RDWR | flag) as fd:
            assert os.write(fd, pattern(10000)) == 10000
            assert os.pread(fd, 10000, 0) == pattern(10000)


@check()
def copy_by_shutil(t: Tree) -> None:
    import shutil

    source = t.file("f", pattern(3 << 20), mode=0o751)
    os.setxattr(source, "user.a", b"x")
    copy = Path(shutil.copy2(source, t / "g"))
    assert copy.read_bytes() == pattern(3 << 20)
    assert copy.stat().st_mtime_ns == source.stat().st_mtime_ns
    assert copy.stat().st_mode == source.stat().st_mode
    assert os.getxattr(copy, "user.a") == b"x"
