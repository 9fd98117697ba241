"""Borrowed pages: PageRef to read one, PageRun for several side by side, PageMut to change one.

Each has an owner: the address of the frame as a cffi object that ends the borrow when it goes. The
buffer below `data` holds the owner, and whatever is made of `data` holds that buffer: memoryviews,
slices, arrays, arrays of arrays. So a borrow ends with the last that looks at it, and the end of
the block merely lets go. Whether that was the last is read off the owner's reference count; if not,
the pool counts it as leaked, until it goes.
"""

from __future__ import annotations

from sys import getrefcount
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from zcfs._native import pool as native
from zcfs._native.pool import ffi
from zcfs.pool import arrays
from zcfs.pool.errors import BorrowError, page_error

if TYPE_CHECKING:
    import struct

    import numpy as np
    from numpy.typing import DTypeLike

    from zcfs._native._lib import Data
    from zcfs.pool.file import PoolFile

_buffer = ffi.buffer

# An owner's references when nobody looks at the page: a local variable, and getrefcount's argument.
_ALONE = 2


class _Borrow:
    """What the three have in common. Any thread may use it."""

    __slots__ = ("_data", "_owner", "file", "number", "size")

    def __init__(self, owner: Data, file: PoolFile, number: int, size: int) -> None:
        self._owner: Data | None = owner
        self._data: memoryview | None = None
        self.file = file
        self.number = number
        self.size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._data = None
        owner, self._owner = self._owner, None
        if owner is not None and getrefcount(owner) > _ALONE:
            self._leak(owner)

    def _leak(self, owner: Data) -> None:
        self.file.pool._count_leak(owner, self._count())

    def release(self) -> None:
        """End the borrow, as the end of its block does. Idempotent."""
        self.__exit__(None, None, None)

    @property
    def data(self) -> memoryview:
        """The bytes, in the frame itself, up to the end of the file."""
        data = self._data
        if data is None:
            data = self._data = self._view()
        return data

    def _view(self) -> memoryview:
        return memoryview(_buffer(self._live(), self.size)).toreadonly()

    def _live(self) -> Data:
        """The owner; BorrowError if the borrow has ended."""
        owner = self._owner
        if owner is None:
            raise BorrowError(f"{self._where()}: the borrow has ended", self.file.path, self.number)
        return owner

    def _where(self) -> str:
        return f"page {self.number} of {self.file.path}"

    def _count(self) -> int:
        return 1

    def __repr__(self) -> str:
        state = "" if self._owner is not None else ", ended"
        return f"<{type(self).__name__}: {self._where()}{state}>"

    @property
    def version(self) -> int:
        """Grows with each change of the page: the same version has the same bytes."""
        return native.version(self.file._pool, self._live())

    @property
    def address(self) -> int:
        """Where the frame is in this process's memory."""
        return int(ffi.cast("uintptr_t", self._live()))

    def array(
        self,
        dtype: DTypeLike,
        offset: int = 0,
        count: int | None = None,
        stride: int | None = None,
    ) -> np.ndarray[Any, Any]:
        """A numpy array over `data`, without a copy.

        It begins `offset` bytes into `data` and has `count` items (None: all that fit), `stride`
        bytes apart (None: one behind another). PoolUsageError (a ValueError) if they do not fit;
        ImportError without numpy.
        """
        return arrays.view(self.data, dtype, offset, count, stride)

    def records(
        self,
        layout: DTypeLike | struct.Struct,
        offset: int = 0,
        count: int | None = None,
        stride: int | None = None,
    ) -> np.ndarray[Any, Any]:
        """As `array`, of records.

        `layout`: a structured dtype, whatever numpy makes one of (a list of fields, a
        ctypes.Structure), or a struct.Struct, whose fields are then f0, f1, …
        """
        return arrays.view(self.data, layout, offset, count, stride)


class PageRef(_Borrow):
    """A page that is borrowed for reading, until its block ends or `release` is called.

        with file.page(7) as page:
            page.data[16:24]

    `number`: of the page. `size`: bytes in `data`: the page size, or less where the file ends.
    `file`: its PoolFile. The bytes stay as they are while anything looks at them, whoever writes to
    the file.
    """

    __slots__ = ()

    @property
    def data(self) -> memoryview:
        """The bytes, in the frame itself, up to the end of the file. Read-only."""
        data = self._data
        if data is None:  # as in _view, without the calls: this is on the way of each point query
            owner = self._owner or self._live()
            data = self._data = memoryview(_buffer(owner, self.size)).toreadonly()
        return data


class PageRun(_Borrow):
    """Pages one behind another in the file whose frames are side by side: one buffer.

    `number`: of the first page; `pages`: how many there are; `size`: bytes in `data`. `version` is
    the first page's.
    """

    __slots__ = ("pages",)

    def __init__(self, owner: Data, file: PoolFile, number: int, size: int, pages: int) -> None:
        super().__init__(owner, file, number, size)
        self.pages = pages

    def _where(self) -> str:
        return f"pages {self.number} to {self.number + self.pages - 1} of {self.file.path}"

    def _count(self) -> int:
        return self.pages


class PageMut(_Borrow):
    """A page that is borrowed exclusively, to be changed in place.

        with file.page_mut(7) as page:
            page.data[16:24] = value

    It is written back when the block ends without an exception, and nobody has seen anything
    between the old bytes and the new; after an exception the change is dropped, and so it is
    without a block. What looks at the page longer than the block has a frame of its own from then
    on: it can be read and written, and nobody else sees it.
    """

    __slots__ = ("_durable",)

    def __init__(
        self, owner: Data, file: PoolFile, number: int, size: int, durable: bool
    ) -> None:
        super().__init__(owner, file, number, size)
        self._durable = durable

    def _view(self) -> memoryview:
        return memoryview(_buffer(self._live(), self.size))

    def release(self) -> None:
        """End the borrow and drop the change. Idempotent."""
        self._end(False)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        error = self._end(kind is None)
        if error:
            raise page_error(error, self.file.path, self.number)

    def _end(self, write: bool) -> int:
        """Returns 0 or the errno of writing the page back; its change is dropped then."""
        self._data = None
        owner, self._owner = self._owner, None
        if owner is None:
            return 0
        if getrefcount(owner) > _ALONE:
            self._leak(owner)
            if write:
                return -native.write_back(self.file._file, owner, self._durable)
            return -native.detach(self.file._file, owner)
        if not write:
            return 0
        error = -native.commit(self.file._file, owner, self._durable)
        if not error:
            ffi.gc(owner, None)
        return error
