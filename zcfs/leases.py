"""Pages of a mount's files, borrowed from the memory of its daemon.

    with zcfs.attach("/mnt/data") as client, client.open("accounts.ibd", page_size=16384) as file:
        with file.page(7) as page:
            records = page.records([("id", "<u8"), ("balance", "<i8")], offset=64)
        with file.pages([7, 9, 12]) as pages:
            total = sum(int(page.array("<i8").sum()) for page in pages)

The daemon reads pages into its pool once for everybody; this process maps that pool for reading
only, and nothing is copied. A leased page keeps its bytes until nothing looks at it any more,
whoever writes to the file. It needs a mount with a pool (--engine pool), and root or the user who
mounted it. docs/leases.md has the protocol and its guarantees.

Any thread may use a client. In the child of a fork it is as if closed.
"""

from __future__ import annotations

import errno
import os
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from sys import getrefcount
from types import TracebackType
from typing import TYPE_CHECKING, Self

from zcfs._native import leases as native
from zcfs._native.leases import ffi, lib
from zcfs.errors import DaemonError, ZcfsError
from zcfs.pool import arrays
from zcfs.pool.errors import BorrowError, PoolUsageError, page_error

if TYPE_CHECKING:
    from zcfs._native._lib import Client, ClientFile, Data

__all__ = ["LeaseClient", "LeasedFile", "LeasedPage", "LeasedPages", "attach"]

WINDOW = 64  # pages leased at a time in a loop

# An owner's references when nobody looks at the page: a local variable, and getrefcount's argument.
_ALONE = 2

_DAEMON = (errno.ENOTCONN, errno.ETIMEDOUT, errno.EPROTO)
_LIMITS = {
    errno.ENOBUFS: "too much is leased; release pages, or make the mount's pool larger",
    errno.EBUSY: "it is being changed just now",
}


def attach(mountpoint: str | os.PathLike[str]) -> LeaseClient:
    """A client of the daemon that serves `mountpoint`, which has to have a pool.

    DaemonError if the daemon is dead or does not answer; PermissionError for anybody but root and
    the mount's owner; ZcfsError if nothing of zcfs is mounted there, if the mount has no pool, or
    if it has too many clients.
    """
    client = native.attach(os.fsencode(mountpoint))
    if isinstance(client, int):
        raise _error(client, os.fspath(mountpoint))
    return LeaseClient(client, os.fspath(mountpoint))


class LeaseClient:
    """A connection to a mount's daemon, and its pool in this process's memory.

    Made by attach. `mountpoint`: as given. `frame_size`: of files opened without a page size;
    `size`: of the pool, in bytes; `borrow_limit`: bytes that all its clients together may lease.
    At the end of its block it is closed.
    """

    def __init__(self, client: Client, mountpoint: str) -> None:
        info = native.info(client)
        self._client = client
        self.mountpoint = mountpoint
        self.frame_size = info.frame_size
        self.size = info.arena_size
        self.borrow_limit = info.page_limit
        self._leaks: dict[int, _Leak] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LeaseClient: {self.mountpoint}>"

    def open(self, path: str | os.PathLike[str], page_size: int | None = None) -> LeasedFile:
        """Open the regular file `path`, relative to the root of the mount, as pages.

        `page_size`: 4096 to 65536, a power of two (None: the mount's frame size). What was
        written to the file before is seen. OSError as open(2), of a symbolic link ELOOP;
        PoolUsageError (a ValueError) for another page size, or a path that leads out of the mount.
        """
        if page_size == 0:
            raise PoolUsageError("page size 0: a power of two from 4096 to 65536 bytes")
        try:
            file = native.open_file(self._client, os.fsencode(path), page_size or 0)
        except OverflowError:
            raise PoolUsageError(
                f"page size {page_size}: a power of two from 4096 to 65536 bytes"
            ) from None
        if isinstance(file, int):
            raise _error(file, os.fspath(path))
        return LeasedFile(self, file, os.fspath(path))

    def close(self) -> None:
        """No more calls. Idempotent.

        What is still leased stays valid, and the connection with it, until the last memoryview or
        array is gone; a ResourceWarning says how much that is.
        """
        held = self.leases
        lib.zcfs_client_close(self._client)
        if held:
            warnings.warn(
                f"{self.mountpoint}: the client is closed, and {held} pages stay leased",
                ResourceWarning,
                stacklevel=2,
            )

    @property
    def leases(self) -> int:
        """Pages that are leased now, each as often as it is."""
        return native.info(self._client).leases

    @property
    def leaked(self) -> int:
        """Of those the ones whose block has ended, and that something still looks at."""
        return len(self._leaks)

    @property
    def connected(self) -> bool:
        """False once a call has found that the daemon has gone, or after close."""
        return bool(native.info(self._client).connected)

    def _count_leak(self, owner: Data) -> None:
        """Something looks at `owner`, whose block has ended. Until it goes it is counted."""
        leaks, key = self._leaks, id(owner)
        leaks[key] = weakref.ref(owner, lambda _: leaks.pop(key, None))


if TYPE_CHECKING:
    _Leak = weakref.ref[Data]


class LeasedFile:
    """A file of the mount as pages that can be leased; made by LeaseClient.open.

    `client`: its LeaseClient. `path`: as it was opened. `page_size`: in bytes. After `close` (or
    the client's) every call raises PoolUsageError, while what is leased stays.
    """

    def __init__(self, client: LeaseClient, file: ClientFile, path: str) -> None:
        self.client = client
        self.path = path
        self.page_size = file.page_size
        self._file: ClientFile | None = file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LeasedFile: {self.path}, pages of {self.page_size} bytes>"

    def close(self) -> None:
        """No more calls. Idempotent; leased pages stay leased."""
        file, self._file = self._file, None
        if file is not None:
            native.close_file(self.client._client, file)

    @property
    def size(self) -> int:
        """Bytes in the file, as it is now."""
        size = native.size(self.client._client, self._open())
        if size < 0:
            raise _error(size, self.path)
        return size

    def __len__(self) -> int:
        """Pages in the file; the last may be short."""
        return -(-self.size // self.page_size)

    def __bool__(self) -> bool:
        return True

    def page(self, number: int) -> LeasedPage:
        """Lease page `number` (from 0). One round trip to the daemon: for many use `pages`.

        IndexError past the end of the file; BorrowError if too much is leased; OSError if it cannot
        be read: then the next call tries again; DaemonError if the daemon has gone.
        """
        return self._lease([number])[0]

    def pages(self, numbers: Iterable[int]) -> LeasedPages:
        """Lease many pages: see LeasedPages. Errors as `page`, when they are leased."""
        return LeasedPages(self, numbers)

    def _open(self) -> ClientFile:
        if self._file is None:
            raise PoolUsageError(f"{self.path}: the file is closed")
        return self._file

    def _lease(self, numbers: Sequence[int]) -> list[LeasedPage]:
        """All of them, or none and the exception of the first that cannot be had."""
        try:
            leases = native.Leases(self.client._client, self._open(), numbers)
        except OverflowError:
            raise IndexError(f"{self.path}: page numbers are 0 and more, of 64 bits") from None
        if leases.error:
            raise _error(leases.error, self.path)
        failed = leases.failed()
        if failed is not None:
            error = -leases.array[failed].error
            leases.release()
            raise self._page_error(error, numbers[failed])
        return [LeasedPage(self, number, leases, i) for i, number in enumerate(numbers)]

    def _page_error(self, error: int, number: int) -> Exception:
        if error in _LIMITS:
            where = f"page {number} of {self.path}"
            return BorrowError(f"{where}: {_LIMITS[error]}", self.path, number)
        if error in _DAEMON or error == errno.ESHUTDOWN:
            return _error(-error, self.path)
        return page_error(error, self.path, number)


class LeasedPage(arrays.Arrays):
    """A page that is leased, until its block ends or `release` is called.

        with file.page(7) as page:
            page.data[16:24]

    `number`: of the page. `size`: bytes in `data`: the page size, or less where the file ends.
    `version`: grows with each change of the page: the same version has the same bytes. `file`: its
    LeasedFile. The bytes stay as they are while anything looks at them, whoever writes to the file.
    """

    __slots__ = ("_data", "_leases", "_owner", "file", "number", "size", "version")

    def __init__(self, file: LeasedFile, number: int, leases: native.Leases, index: int) -> None:
        self._owner: Data | None
        self._owner, self.size, self.version = leases.page(index)
        self._data: memoryview | None = None
        self._leases = leases
        self.file = file
        self.number = number

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._data = None
        owner, self._owner = self._owner, None
        if owner is not None and getrefcount(owner) > _ALONE:
            self.file.client._count_leak(owner)

    def release(self) -> None:
        """End the lease, as the end of its block does. Idempotent."""
        self.__exit__(None, None, None)

    def __repr__(self) -> str:
        state = "" if self._owner is not None else ", ended"
        return f"<LeasedPage: page {self.number} of {self.file.path}{state}>"

    @property
    def data(self) -> memoryview:
        """The bytes, in the daemon's own frame, up to the end of the file. Read-only."""
        data = self._data
        if data is None:
            buffer = ffi.buffer(self._live(), self.size)
            data = self._data = memoryview(buffer).toreadonly()
        return data

    @property
    def address(self) -> int:
        """Where the frame is in this process's memory."""
        return int(ffi.cast("uintptr_t", self._live()))

    def _live(self) -> Data:
        """The owner; BorrowError if the lease has ended."""
        owner = self._owner
        if owner is None:
            where = f"page {self.number} of {self.file.path}"
            raise BorrowError(f"{where}: the lease has ended", self.file.path, self.number)
        return owner

    def _is_looked_at(self) -> bool:
        """Whether something beside this object looks at the page. Lets go of its own view."""
        self._data = None
        owner = self._owner
        return owner is not None and getrefcount(owner) > _ALONE + 1

    def _forget(self) -> None:
        """The lease is ended by somebody else."""
        owner, self._owner = self._owner, None
        if owner is not None:
            ffi.gc(owner, None)


class LeasedPages:
    """Pages of a file by number.

    with file.pages([7, 9, 12]) as pages:       # all of them leased, until the block ends
        pages[2].data

    for page in file.pages(range(len(file))):   # each until the loop goes on
        page.data
    """

    def __init__(self, file: LeasedFile, numbers: Iterable[int]) -> None:
        self.file = file
        self.numbers: Sequence[int] = numbers if isinstance(numbers, range) else list(numbers)
        self._held: list[LeasedPage] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __enter__(self) -> Self:
        """Lease all of them in batches; if one cannot be leased, none is."""
        self._held = self.file._lease(self.numbers) if len(self.numbers) else []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        held, self._held = self._held, None
        _release(held or [])

    def __getitem__(self, index: int) -> LeasedPage:
        """The page at `index` among `numbers`, inside the block."""
        if self._held is None:
            raise PoolUsageError("pages are there by index inside `with file.pages(…) as pages:`")
        return self._held[index]

    def __iter__(self) -> Iterator[LeasedPage]:
        if self._held is not None:
            return iter(self._held)
        return self._each()

    def _each(self) -> Iterator[LeasedPage]:
        for at in range(0, len(self.numbers), WINDOW):
            held = self.file._lease(self.numbers[at : at + WINDOW])
            try:
                yield from held
            finally:
                _release(held)


def _release(pages: list[LeasedPage]) -> None:
    """End leases that were taken together: in one message, if nothing else looks at the pages."""
    if not pages:
        return
    if any(page._owner is None or page._is_looked_at() for page in pages):
        for page in pages:
            page.release()
        return
    for page in pages:
        page._forget()
    pages[0]._leases.release()


def _error(error: int, path: str) -> Exception:
    """The exception for -errno `error` of the last call of this thread."""
    text = native.message()
    if -error in _DAEMON:
        return DaemonError(text)
    if -error in (errno.ESHUTDOWN, errno.EBADF):
        return PoolUsageError(f"{path}: the file or its client is closed")
    if -error == errno.EINVAL:
        return PoolUsageError(text)
    if -error in (errno.ENODEV, errno.EUSERS) or (-error == errno.EOPNOTSUPP):
        return ZcfsError(text)
    if -error == errno.ENOBUFS:
        return BorrowError(f"{path}: {_LIMITS[errno.ENOBUFS]}", path)
    return OSError(-error, text, path)
