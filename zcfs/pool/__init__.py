"""Pages of files, read past the page cache into frames that zcfs owns, and borrowed there.

    with zcfs.BufferPool(size="256MiB") as pool, pool.open("accounts.ibd") as file:
        with file.page(7) as page:
            records = page.records([("id", "<u8"), ("balance", "<i8")], offset=64)
            total = records["balance"].sum()

Nothing is copied on the way: `page.data` and the arrays made of it are the frame that the disk's
DMA wrote to. Each page may be borrowed by any number of readers, or by one who changes it, never
both; this is checked at run time, over threads. What is still looked at stays as it is: a
memoryview or array that outlives the block of its page keeps the frame, and is counted
(`statistics().leaked`).

All of it works without a mount, from any thread. In the child of a fork a pool is as if closed.
"""

from zcfs.pool.errors import BorrowError, PoolUsageError
from zcfs.pool.file import PoolFile
from zcfs.pool.page import PageMut, PageRef, PageRun
from zcfs.pool.pages import Pages
from zcfs.pool.pool import BufferPool, PoolStatistics

__all__ = [
    "BorrowError",
    "BufferPool",
    "PageMut",
    "PageRef",
    "PageRun",
    "Pages",
    "PoolFile",
    "PoolStatistics",
    "PoolUsageError",
]
