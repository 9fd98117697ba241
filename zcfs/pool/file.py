"""A file that is open in a pool."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from zcfs._native import pool as native
from zcfs._native.pool import ffi, lib
from zcfs.pool import arrays
from zcfs.pool.errors import PoolUsageError, page_error
from zcfs.pool.page import PageMut
from zcfs.pool.pages import Pages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, DTypeLike

    from zcfs._native._lib import File
    from zcfs.pool.pool import BufferPool


class PoolFile(native.File):
    """A file as pages that can be borrowed; made by BufferPool.open. Any thread may use it.

        with file.page(7) as page:      # page 7 (from 0), for reading: a PageRef
            page.data[16:24]

    `page` raises IndexError past the end of the file; BorrowError if the page is borrowed
    exclusively, or half of the pool is borrowed; OSError if it cannot be read: then the next call
    tries again. After `close` (or the pool's) every call raises PoolUsageError, while what is
    borrowed stays.

    `pool`: its BufferPool. `path`: as it was opened. `page_size`: in bytes.
    """

    def __init__(
        self, pool: BufferPool, file: File, path: str, page_size: int, writable: bool
    ) -> None:
        super().__init__(file, native.address(file), native.address(pool._pool), page_size)
        self.pool = pool
        self.path = path
        self.page_size = page_size
        self.writable = writable
        self._file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """No more calls. Idempotent. Pages stay cached, and borrowed ones borrowed."""
        lib.zcfs_file_close(self._file)

    def __repr__(self) -> str:
        return f"<PoolFile: {self.path}, pages of {self.page_size} bytes>"

    @property
    def size(self) -> int:
        """Bytes in the file, as it is now."""
        return self._checked(lib.zcfs_file_size(self._file))

    @property
    def direct(self) -> bool:
        """Whether the file is read past the page cache; false where O_DIRECT was refused."""
        return bool(self._checked(lib.zcfs_file_direct(self._file)))

    def __len__(self) -> int:
        """Pages in the file; the last may be short."""
        return -(-self.size // self.page_size)

    def __bool__(self) -> bool:
        return True

    def pages(self, numbers: Iterable[int]) -> Pages:
        """Borrow many pages: see Pages. Errors as `page`, when they are borrowed."""
        return Pages(self, numbers)

    def page_mut(self, number: int, *, durable: bool = False) -> PageMut:
        """Borrow page `number` (from 0) exclusively, to change it in place: see PageMut.

        `durable`: it is on the disk when the block has ended. BorrowError if the page is borrowed,
        either way; PoolUsageError if the file was not opened with `writable`; others as `page`.
        """
        if not self.writable:
            raise PoolUsageError(f"{self.path} was opened for reading: use writable=True")
        page = self._borrow_mut(number)
        page._durable = durable
        return page

    def gather(
        self, pages: ArrayLike, offsets: ArrayLike, dtype: DTypeLike
    ) -> np.ndarray[Any, Any]:
        """One value of `dtype` from each of many places, as a new array: the batched point query.

            ordinals = rng.integers(count, size=100_000)
            file.gather(ordinals // per_page, ordinals % per_page * 64, record_dtype)

        `pages`: numbers; `offsets`: in bytes within the page; either may be one number for all.
        Reads what is missing in batches, without the GIL. PoolUsageError (a ValueError) if a value
        reaches past its page or the end of the file; others as `page`; ImportError without numpy.
        """
        np = arrays.numpy()
        of = np.dtype(dtype)
        if of.hasobject or not of.itemsize:
            raise PoolUsageError(f"{of} has no fixed bytes in a file")
        where = np.asarray(pages).astype(np.uint64, order="C", copy=False)
        shift = np.asarray(offsets).astype(np.uint64, order="C", copy=False)
        if shift.ndim == 0:
            base, shift = int(shift), None
        else:
            base = 0
            where, shift = (np.ascontiguousarray(a) for a in np.broadcast_arrays(where, shift))
        out = np.empty(where.shape, of)
        at = ffi.new("uint64_t *")
        error = -lib.zcfs_gather(
            self._file,
            ffi.from_buffer("uint64_t[]", where.reshape(-1)),
            ffi.NULL if shift is None else ffi.from_buffer("uint64_t[]", shift.reshape(-1)),
            base,
            where.size,
            of.itemsize,
            ffi.from_buffer("char[]", out.reshape(-1).view(np.uint8), require_writable=True),
            at,
        )
        if error == errno.EOVERFLOW:
            raise PoolUsageError(
                f"page {where.flat[at[0]]} of {self.path}: {of.itemsize} bytes at offset "
                f"{base if shift is None else shift.flat[at[0]]} reach past its end"
            )
        if error:
            raise self._error(error, int(where.flat[at[0]]))
        return out  # type: ignore[no-any-return]

    def prefetch(self, pages: range) -> None:
        """Have `pages` (a range of step 1) read in the background. Promises nothing."""
        if pages.step != 1 or pages.start < 0:
            raise PoolUsageError(f"{pages}: page numbers begin at 0, and the step is 1")
        self._checked(lib.zcfs_file_prefetch(self._file, pages.start, len(pages)))

    def flush(self) -> None:
        """Return when all data that was written to the file is on the disk: fdatasync(2).

        The pool itself holds nothing back: a page is written when the block of page_mut ends.
        """
        self._checked(lib.zcfs_file_sync(self._file, True))

    def fsync(self) -> None:
        """Return when data and metadata are on the disk: fsync(2)."""
        self._checked(lib.zcfs_file_sync(self._file, False))

    def _checked(self, result: int) -> int:
        if result == -errno.ESHUTDOWN:
            raise PoolUsageError(f"{self.path}: the file is closed")
        if result < 0:
            raise OSError(-result, os.strerror(-result), self.path)
        return result

    def _error(self, error: int, number: int) -> Exception:
        """The exception for a borrow of page `number` that failed with `error`."""
        shared = None
        if error == errno.EBUSY:
            shared = self.pool._shared(self.path, number)
        return page_error(error, self.path, number, shared)
