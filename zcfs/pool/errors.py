"""What the pool raises, and the one place where the library's error numbers become exceptions."""

from __future__ import annotations

import errno
import os

from zcfs.errors import UsageError, ZcfsError


class BorrowError(ZcfsError):
    """A borrow that may not be: somebody else has the page, or too much is borrowed.

    `path` and `page`: what was asked for. `shared`: how many shared borrows of the page there were,
    0 where it was borrowed exclusively, None where that is not known or not the reason.
    """

    def __init__(
        self, message: str, path: str = "", page: int | None = None, shared: int | None = None
    ) -> None:
        super().__init__(message)
        self.path = path
        self.page = page
        self.shared = shared


class PoolUsageError(UsageError, ValueError):
    """An argument that makes no sense, or a pool or file that was closed; nothing was done."""


def page_error(error: int, path: str, page: int, shared: int | None = None) -> Exception:
    """The exception for `error` at a borrow of `page` of the file `path`."""
    where = f"page {page} of {path}"
    if error == errno.ERANGE:
        return IndexError(f"{where}: past the end of the file")
    if error == errno.EBUSY:
        return BorrowError(f"{where} {_holders(shared)}", path, page, shared)
    if error in _LIMITS:
        return BorrowError(f"{where}: {_LIMITS[error]}", path, page)
    if error == errno.ESHUTDOWN:
        return PoolUsageError(f"{where}: the file is closed")
    return OSError(error, f"{os.strerror(error)} (page {page})", path)


_LIMITS = {
    errno.ENOBUFS: "half of the pool is borrowed; release pages, or make the pool larger",
    errno.EAGAIN: "65535 borrows of it are out",
    errno.ESTALE: "somebody else wrote to it meanwhile; the change was dropped",
}


def _holders(shared: int | None) -> str:
    if shared is None:
        return "is borrowed"
    if shared == 0:
        return "is borrowed exclusively (page_mut)"
    return f"has {shared} shared borrow{'s' if shared > 1 else ''}"
