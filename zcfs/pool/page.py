"""Borrowed pages: PageRef to read one, PageRun for several side by side, PageMut to change one.

What they do at each borrow is in C (native/python/zcfs_page.c). Each has an object of its own that
is the borrow, and whatever is made of `data` holds that: memoryviews, slices, arrays, arrays of
arrays. So a borrow ends with the last that looks at it, and the end of the block merely lets go. If
something still looks then, the pool counts the page as leaked, until it goes.
"""

from __future__ import annotations

from types import TracebackType

from zcfs._native import pool as native
from zcfs.pool import arrays
from zcfs.pool.errors import BorrowError, page_error


class _Borrow(native.Borrow, arrays.Arrays):
    """What the three have in common. Any thread may use it.

    Made by a PoolFile alone; they cannot be copied, pickled or subclassed, for each is one borrow.
    """

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        if cls.__module__ != __name__:
            raise TypeError("the classes of borrowed pages cannot be subclassed")

    def _ended_error(self) -> BorrowError:
        return BorrowError(f"{self._where()}: the borrow has ended", self.file.path, self.number)

    def _where(self) -> str:
        return f"page {self.number} of {self.file.path}"

    def __repr__(self) -> str:
        state = ", ended" if self._ended else ""
        return f"<{type(self).__name__}: {self._where()}{state}>"


class PageRef(_Borrow):
    """A page that is borrowed for reading, until its block ends or `release` is called.

        with file.page(7) as page:
            page.data[16:24]

    `data`: a read-only memoryview of the frame, up to the end of the file. `number`: of the page.
    `size`: bytes in `data`: the page size, or less where the file ends. `file`: its PoolFile. The
    bytes stay as they are while anything looks at them, whoever writes to the file.
    """

    __slots__ = ()


class PageRun(_Borrow):
    """Pages one behind another in the file whose frames are side by side: one buffer.

    `number`: of the first page; `pages`: how many there are; `size`: bytes in `data`. `version` is
    the first page's.
    """

    __slots__ = ()

    @property
    def pages(self) -> int:
        """How many."""
        return self._pages

    def _where(self) -> str:
        return f"pages {self.number} to {self.number + self.pages - 1} of {self.file.path}"


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
    _durable: bool

    def release(self) -> None:
        """End the borrow and drop the change. Idempotent."""
        self._finish(False, False)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        error = self._finish(kind is None, self._durable)
        if error:
            raise page_error(error, self.file.path, self.number)


native.use_types(PageRef, PageRun, PageMut)
