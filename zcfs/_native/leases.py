"""The client library of page leases (native/client/zcfs_client.h), for zcfs.leases alone.

Any thread may call; all of it lets go of the GIL. Functions return 0, a count or -errno.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from zcfs._native._lib import ffi, lib

if TYPE_CHECKING:
    from zcfs._native._lib import Client, ClientFile, ClientInfo, Data, Lease, _Array

__all__ = ["Leases", "attach", "close_file", "ffi", "info", "lib", "message", "open_file", "size"]

close_file = lib.zcfs_client_close_file
size = lib.zcfs_client_file_size


def message() -> str:
    """About the last call of this thread that failed."""
    return ffi.string(lib.zcfs_client_message()).decode(errors="surrogateescape")


def attach(mountpoint: bytes) -> Client | int:
    """A client, which ends when nobody refers to it; or -errno."""
    out = ffi.new("struct zcfs_client **")
    error = lib.zcfs_client_attach(mountpoint, out)
    return error if error else ffi.gc(out[0], lib.zcfs_client_free)


def info(client: Client) -> ClientInfo:
    out = ffi.new("struct zcfs_client_info *")
    lib.zcfs_client_info(client, out)
    return out


def open_file(client: Client, path: bytes, page_size: int) -> ClientFile | int:
    out = ffi.new("struct zcfs_client_file *")
    error = lib.zcfs_client_open(client, path, page_size, out)
    return error if error else out


class Leases:
    """Pages that were asked for together. `error`: 0 or -errno, where none could be had.

    An owner, the address of a page's data, ends the lease of that page when it goes, unless
    `release` has ended all of them before.
    """

    __slots__ = ("array", "client", "count", "error", "got")

    def __init__(self, client: Client, file: ClientFile, numbers: Sequence[int]) -> None:
        self.client = client
        self.count = len(numbers)
        self.array: _Array[Lease] = ffi.new("struct zcfs_lease[]", self.count)
        listed = ffi.new("uint64_t[]", list(numbers))
        got = lib.zcfs_client_lease(client, file, listed, self.count, self.array)
        self.error = min(got, 0)
        self.got = got

    def failed(self) -> int | None:
        """The index of the first page that is not leased."""
        if self.got == self.count:
            return None
        return next(i for i in range(self.count) if self.array[i].error)

    def page(self, index: int) -> tuple[Data, int, int]:
        """The owner of a page, its valid bytes, and its version."""
        lease = self.array[index]
        return ffi.gc(lease.data, partial(self._release_one, index)), lease.valid, lease.version

    def _release_one(self, index: int, _: Data) -> None:
        lib.zcfs_client_release(self.client, self.array[index : index + 1], 1)

    def release(self) -> None:
        """End all that have not ended yet, in one message."""
        lib.zcfs_client_release(self.client, self.array, self.count)
