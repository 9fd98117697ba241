"""Writes the C source of the extension `zcfs._native._lib`: `python zcfs_native_build.py OUT.c`.

cffi in API mode: the compiler checks every declaration against native/zcfs.h, and the declarations
are that file itself. The build compiles the result and links it with the core library.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cffi import FFI

HEADER = Path(__file__).resolve().parent.parent / "zcfs.h"


def declarations(header: str) -> str:
    """The header without its preprocessor lines."""
    return "\n".join(line for line in header.splitlines() if not line.startswith("#"))


def main(out: str) -> None:
    ffi = FFI()
    ffi.cdef(declarations(HEADER.read_text(encoding="utf-8")))
    ffi.set_source("zcfs._native._lib", '#include "zcfs.h"')
    ffi.emit_c_code(out)


if __name__ == "__main__":
    main(sys.argv[1])
