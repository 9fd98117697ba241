"""The pool: frames in one arena, and the files that are open in it."""

from __future__ import annotations

import errno
import os
import re
import warnings
import weakref
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from zcfs._native.pool import ffi, lib
from zcfs.pool.errors import PoolUsageError
from zcfs.pool.file import PoolFile

if TYPE_CHECKING:
    from zcfs._native._lib import Borrowed, Null

PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """Since the pool was made, but for what says "now". Sizes are in bytes."""

    hits: int  # pages that were there
    misses: int  # pages that had to be read
    readahead: int  # pages read before somebody asked
    evictions: int
    bytes_read: int  # from the disk
    bytes_written: int
    bytes_copied: int  # by the pool; a borrow copies nothing
    bypass_bytes: int  # read and written past the frames
    waits: int  # for a page that another thread was reading, or for room
    requests: int  # to the I/O back end
    syscalls: int
    borrowed: int  # now: frames that are borrowed
    borrow_limit: int
    size: int  # of the arena
    free_slabs: int  # now: 2 MiB each
    files: int  # now: that the pool knows, open or not
    huge_pages: bool  # whether the arena has them
    frames: dict[int, int]  # now, by size: how many there are
    used: dict[int, int]  # now, by size: with a page in them
    leaked: int  # now: pages whose block has ended, and that something still looks at


class BufferPool:
    """Memory for pages of files, of `size` bytes ("256MiB", or a number; at least 8 MiB).

    `frame_size`: of the pages of files opened without a page size, 4096 to 65536, a power of two.
    `io`: "io_uring", "aio" or "threads" (None: the best that works here). `policy`: of replacement,
    "s3fifo", "wtinylfu", "clock" or "lru" (None: s3fifo).

    PoolUsageError (a ValueError) for a size below the minimum or above the machine's memory,
    another frame size, or an unknown name; OSError if the back end does not work here. Any thread
    may use a pool. At the end of its block it is closed.
    """

    def __init__(
        self,
        size: int | str = "256MiB",
        frame_size: int = 16384,
        *,
        io: str | None = None,
        policy: str | None = None,
    ) -> None:
        bytes_ = parse_size(size)
        self._check(bytes_, size, frame_size)
        out = ffi.new("struct zcfs_pool **")
        error = -lib.zcfs_pool_create(bytes_, frame_size, _name(io), _name(policy), out)
        if error:
            raise _create_error(error, size, io, policy)
        self._pool = ffi.gc(out[0], lib.zcfs_pool_free)
        self.frame_size = frame_size
        self.io = ffi.string(lib.zcfs_pool_io(self._pool)).decode()
        self.policy = ffi.string(lib.zcfs_pool_policy(self._pool)).decode()
        self._ids = count(1)
        self._files: weakref.WeakValueDictionary[int, PoolFile] = weakref.WeakValueDictionary()
        self.size = self.statistics().size

    @staticmethod
    def _check(bytes_: int, size: int | str, frame_size: int) -> None:
        least = lib.zcfs_pool_min_size()
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if bytes_ < least:
            raise PoolUsageError(f"pool size {size}: at least {least >> 20}MiB")
        if bytes_ > memory:
            raise PoolUsageError(f"pool size {size}: the machine has {memory >> 20}MiB")
        _check_page_size("frame size", frame_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def open(
        self, path: str | os.PathLike[str], page_size: int | None = None, writable: bool = False
    ) -> PoolFile:
        """Open the regular file or block device `path` as pages of `page_size` bytes.

        `page_size`: 4096 to 65536, a power of two (None: the pool's frame size).
        The same file may be open several times; its pages are cached once for each page size. What
        others write to the file is seen at the next open. OSError as open(2); PoolUsageError (a
        ValueError) for another page size, or what is no such file.
        """
        page_size = self.frame_size if page_size is None else page_size
        _check_page_size("page size", page_size)
        path = os.fspath(path)
        number = next(self._ids)
        out = ffi.new("struct zcfs_file **")
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            error = -lib.zcfs_file_open(self._pool, fd, page_size, number, out)
        finally:
            os.close(fd)
        if error == errno.EINVAL:
            raise PoolUsageError(f"{path}: neither a regular file nor a block device")
        if error == errno.ESHUTDOWN:
            raise PoolUsageError("the pool is closed")
        if error:
            raise OSError(error, os.strerror(error), path)
        file = PoolFile(self, ffi.gc(out[0], lib.zcfs_file_free), path, page_size, writable)
        self._files[number] = file
        return file

    def close(self) -> None:
        """Close the pool and its files. Idempotent.

        What is still borrowed stays valid, and the arena stays with it until the last memoryview or
        array is gone; a ResourceWarning says what that is.
        """
        held = self.borrowed()
        for file in list(self._files.values()):
            file.close()
        lib.zcfs_pool_close(self._pool)
        if held:
            names = [f"page {number} of {path}" for path, number, _ in held[:4]]
            more = [f"{len(held) - 4} more"] if len(held) > 4 else []
            warnings.warn(
                f"the pool is closed, and its memory stays for what is borrowed: "
                f"{', '.join(names + more)}",
                ResourceWarning,
                stacklevel=2,
            )

    def statistics(self) -> PoolStatistics:
        """What the pool did, in raw numbers. PoolUsageError when it is closed."""
        names = ffi.new("const char *[64]")
        values = ffi.new("uint64_t[64]")
        n = lib.zcfs_pool_statistics(self._pool, names, values, 64)
        if n < 0:
            raise PoolUsageError("the pool is closed")
        found = {ffi.string(names[i]).decode(): values[i] for i in range(n)}
        frames = {size: found.pop(f"frames_{size >> 10}k") for size in PAGE_SIZES}
        used = {size: found.pop(f"used_{size >> 10}k") for size in PAGE_SIZES}
        figures: dict[str, Any] = dict(found)
        figures["huge_pages"] = bool(found["huge_pages"])
        return PoolStatistics(**figures, frames=frames, used=used)

    def borrowed(self) -> list[tuple[str, int, int]]:
        """What is borrowed through this object: (path, page, shared borrows; 0: exclusive).

        Of a file that was closed the path is "a closed file". Empty when the pool is closed.
        """
        out = ffi.new("struct zcfs_borrowed[]", 256)
        n = lib.zcfs_pool_borrowed(self._pool, out, 256)
        if n > 256:
            out = ffi.new("struct zcfs_borrowed[]", n)
            n = min(n, lib.zcfs_pool_borrowed(self._pool, out, n))
        return [(self._path(b), b.number, b.shared) for b in out[0:n]]

    def _path(self, borrowed: Borrowed) -> str:
        file = self._files.get(borrowed.file)
        return file.path if file else "a closed file"

    def _shared(self, path: str, number: int) -> int | None:
        """How many shared borrows the page has; 0: it is exclusive; None: unknown."""
        found = [shared for p, n, shared in self.borrowed() if (p, n) == (path, number)]
        return max(found, default=None)


def parse_size(size: int | str) -> int:
    """Bytes of "256MiB", "1 GiB", "65536" or a number; PoolUsageError."""
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]*)\s*", size)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise PoolUsageError(f'size "{size}": a number with B, KiB, MiB, GiB or TiB')
    return int(match[1]) * unit


def _check_page_size(what: str, size: int) -> None:
    if size not in PAGE_SIZES:
        raise PoolUsageError(f"{what} {size}: a power of two from 4096 to 65536 bytes")


def _name(name: str | None) -> bytes | Null:
    return ffi.NULL if name is None else name.encode()


def _create_error(error: int, size: int | str, io: str | None, policy: str | None) -> Exception:
    if error == errno.EINVAL:
        return PoolUsageError(f"no such I/O back end or policy: io={io!r}, policy={policy!r}")
    if error == errno.ENOTSUP:
        return OSError(error, f"the I/O back end {io} does not work here")
    return OSError(error, f"{os.strerror(error)}: a pool of {size}")
