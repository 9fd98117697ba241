"""The second module of the extension: native/python/zcfs_page.c."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, SupportsIndex

from zcfs.pool.file import PoolFile
from zcfs.pool.page import PageMut, PageRef, PageRun

class Borrow:
    file: PoolFile
    number: int
    size: int
    _pages: int
    _ended: bool
    @property
    def data(self) -> memoryview: ...
    @property
    def version(self) -> int: ...
    @property
    def address(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
        /,
    ) -> None: ...
    def release(self) -> None: ...
    def _finish(self, write: bool, durable: bool, /) -> int: ...

class File:
    def __init__(self, owner: Any, file: int, pool: int, page_size: int, /) -> None: ...
    def page(self, number: SupportsIndex, /) -> PageRef: ...
    def _borrow_mut(self, number: SupportsIndex, /) -> PageMut: ...
    def _borrow_many(
        self, numbers: Sequence[int] | None, first: int, count: int, join: bool, /
    ) -> list[Any]: ...

def use_types(page: type[PageRef], run: type[PageRun], mut: type[PageMut], /) -> None: ...
