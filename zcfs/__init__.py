"""zcfs: a directory of database files, mounted at the speed of its disk."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zcfs.leases import attach
    from zcfs.pool import BorrowError, BufferPool, PageRef

__version__ = "0.1.0"
__all__ = ["BorrowError", "BufferPool", "PageRef", "__version__", "attach"]


def __getattr__(name: str) -> object:
    """The pool's names, loaded when first asked for: most commands of mountctl do without."""
    if name in ("BorrowError", "BufferPool", "PageRef"):
        import zcfs.pool

        return getattr(zcfs.pool, name)
    if name == "attach":
        import zcfs.leases

        return zcfs.leases.attach
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
