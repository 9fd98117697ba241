"""The pool's part of the C library (native/zcfs.h), for zcfs.pool alone.

`lib` has the library's own functions; any thread may call, and all of them let go of the GIL. An
address that a function returns is false on failure, and `ffi.errno` tells why; a count is -errno
then. What a borrow costs would be spent several times over on the way through cffi, so borrowed
pages are C types (native/python/zcfs_page.c): `Borrow` and `File`, in a second module of the same
library, for both have to work on the same pools.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING

from zcfs._native import _lib
from zcfs._native._lib import ffi, lib

__all__ = ["MOST_PAGES", "Borrow", "File", "address", "ffi", "lib", "use_types"]

if TYPE_CHECKING:
    from zcfs._native import _page
    from zcfs._native._lib import File as FileHandle
    from zcfs._native._lib import Pool
else:
    _spec = spec_from_file_location("zcfs._native._page", _lib.__file__)
    _page = module_from_spec(_spec)
    sys.modules[_spec.name] = _page
    _spec.loader.exec_module(_page)

MOST_PAGES = 256  # of one call to File._borrow_many

Borrow = _page.Borrow
File = _page.File
use_types = _page.use_types


def address(handle: FileHandle | Pool) -> int:
    """Where it is: what File is made of."""
    return int(ffi.cast("uintptr_t", handle))
