"""The pool's part of the C library (native/zcfs.h), for zcfs.pool alone.

The functions are the library's own, under shorter names: a wrapper would cost as much as what it
wraps. Any thread may call; all of them let go of the GIL. An address that a function returns is
false on failure, and `ffi.errno` tells why; a count is -errno then.
"""

from __future__ import annotations

from zcfs._native._lib import ffi, lib

__all__ = [
    "MOST_PAGES",
    "abandon",
    "borrow",
    "borrow_mut",
    "borrow_runs",
    "borrow_whole",
    "commit",
    "detach",
    "ffi",
    "lib",
    "put",
    "put_run",
    "valid",
    "version",
    "write_back",
]

MOST_PAGES = 256  # of one call to borrow_runs

borrow = lib.zcfs_page_borrow
borrow_whole = lib.zcfs_page_borrow_whole
put = lib.zcfs_page_put
valid = lib.zcfs_page_valid
version = lib.zcfs_page_version

borrow_mut = lib.zcfs_page_borrow_mut
commit = lib.zcfs_page_commit
write_back = lib.zcfs_page_write_back
detach = lib.zcfs_page_detach
abandon = lib.zcfs_page_abandon

borrow_runs = lib.zcfs_run_borrow
put_run = lib.zcfs_run_put
