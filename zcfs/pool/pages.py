"""Many pages of a file: all together in a block, or one after the other in a loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from zcfs._native import pool as native
from zcfs.pool.errors import PoolUsageError
from zcfs.pool.page import PageRef, PageRun

if TYPE_CHECKING:
    from zcfs.pool.file import PoolFile

WINDOW = 2 << 20  # bytes borrowed at a time in a loop


class Pages:
    """Pages of a file by number, read from the disk in batches.

        with file.pages([7, 9, 12]) as pages:       # all of them borrowed, until the block ends
            pages[2].data

        for page in file.pages(range(len(file))):   # each until the loop goes on
            page.data

        for run in file.pages(range(len(file))).runs():
            total += run.array("<i8", offset=8, stride=64).sum()
    """

    def __init__(self, file: PoolFile, numbers: Iterable[int]) -> None:
        self.file = file
        self.numbers: Sequence[int] = numbers if isinstance(numbers, range) else list(numbers)
        self._held: list[PageRef] | None = None
        ends = self.numbers
        if isinstance(ends, range):
            ends = [*ends[:1], *ends[-1:]]
        if any(not 0 <= number < 1 << 64 for number in ends):
            raise IndexError(f"{file.path}: page numbers begin at 0")

    def __len__(self) -> int:
        return len(self.numbers)

    def __enter__(self) -> Self:
        """Borrow all of them; BorrowError if that is more than half of the pool, and none then."""
        held: list[PageRef] = []
        try:
            for window in self._windows(native.MOST_PAGES):
                held += self._refs(window)
        except BaseException:
            _release(held)
            raise
        self._held = held
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        held, self._held = self._held, None
        _release(held or [])

    def __getitem__(self, index: int) -> PageRef:
        """The page at `index` among `numbers`, inside the block."""
        if self._held is None:
            raise PoolUsageError("pages are there by index inside `with file.pages(…) as pages:`")
        return self._held[index]

    def __iter__(self) -> Iterator[PageRef]:
        if self._held is not None:
            return iter(self._held)
        return self._each()

    def _each(self) -> Iterator[PageRef]:
        for window in self._windows(self._window()):
            refs = self._refs(window)
            refs.reverse()
            while refs:
                with refs.pop() as page:
                    yield page

    def runs(self) -> Iterator[PageRun]:
        """The pages in their order, as many together as lie side by side in memory.

        Each run is borrowed until the loop goes on. How long they are depends on where frames were
        free when the pages were read: up to 2 MiB where that was in order into an empty pool.
        """
        for window in self._windows(self._window()):
            runs = self._runs(window)
            runs.reverse()
            while runs:
                with runs.pop() as run:
                    yield run

    def _window(self) -> int:
        """How many pages to borrow at a time: a small share of the pool."""
        most = min(WINDOW, self.file.pool.size // 16) // self.file.page_size
        return max(1, min(most, native.MOST_PAGES))

    def _windows(self, most: int) -> Iterator[_Window]:
        at = 0
        while at < len(self.numbers):
            window = _Window(self.numbers[at : at + most])
            yield window
            at += window.taken

    def _refs(self, window: _Window) -> list[PageRef]:
        refs: list[PageRef] = self._borrow(window, False)
        window.taken = len(refs)
        return refs

    def _runs(self, window: _Window) -> list[PageRun]:
        runs: list[PageRun] = self._borrow(window, True)
        window.taken = sum(run.pages for run in runs)
        return runs

    def _borrow(self, window: _Window, join: bool) -> list[Any]:
        """Borrow the window, or as much of its beginning as can be."""
        numbers = window.numbers
        listed = None if _in_order(numbers) else list(numbers)
        return self.file._borrow_many(listed, numbers[0], len(numbers), join)


class _Window:
    """Some of the numbers; `taken`: how many of them could be borrowed together."""

    __slots__ = ("numbers", "taken")

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = numbers
        self.taken = 0


def _in_order(numbers: Sequence[int]) -> bool:
    return isinstance(numbers, range) and numbers.step == 1


def _release(pages: list[PageRef]) -> None:
    while pages:
        pages.pop().release()
