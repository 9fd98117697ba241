"""Writes the C source of the extension `zcfs._native._lib`: `python zcfs_native_build.py OUT.c`.

cffi in API mode: the compiler checks every declaration against native/zcfs.h and
native/client/zcfs_client.h, and the declarations are those files themselves. The build compiles the
result and links it with the core library and the client's.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).resolve().parent.parent
HEADERS = ("zcfs.h", "client/zcfs_client.h")


def declarations(header: str) -> str:
    """The header without what is for C++, and without its preprocessor lines."""
    header = re.sub(r"^#ifdef __cplusplus$.*?^#endif$", "", header, flags=re.M | re.S)
    return "\n".join(line for line in header.splitlines() if not line.startswith("#"))


def main(out: str) -> None:
    ffi = FFI()
    for header in HEADERS:
        ffi.cdef(declarations((NATIVE / header).read_text(encoding="utf-8")))
    ffi.set_source("zcfs._native._lib", "\n".join(f'#include "{name}"' for name in HEADERS))
    ffi.emit_c_code(out)


if __name__ == "__main__":
    main(sys.argv[1])
