"""The C library, as Python sees it. Nothing else in zcfs imports the compiled module.

Calls are coarse: nothing here is on the way of a request. Errors of the library become OSError with
its errno. Any thread may call.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from zcfs._native._lib import ffi, lib

__all__ = ["Message", "arm_fault", "faults_available", "faults_seen", "parse_message", "version"]


def _checked(result: int) -> int:
    """The one place where the library's errors become exceptions."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def version() -> str:
    """The version of the C library, such as "0.1.0"."""
    return ffi.string(lib.zc_version()).decode()


@dataclass(frozen=True, slots=True)
class Message:
    """A FUSE request message, taken apart by the data plane's own parser."""

    opcode: str
    fixed_size: int
    names: tuple[bytes, ...]
    data: bytes
    extensions: bytes


def parse_message(message: bytes) -> Message:
    """Take apart `message`, the bytes that a read of /dev/fuse returns.

    Raises OSError: EPROTO for lengths that disagree, EOPNOTSUPP for an unknown opcode, EINVAL or
    ENAMETOOLONG for a name that cannot be.
    """
    out = ffi.new("struct zc_message *")
    _checked(lib.zc_message_parse(message, len(message), out))
    names = range(out.names)
    return Message(
        opcode=ffi.string(lib.zc_opcode_name(out.opcode)).decode(),
        fixed_size=out.fixed_size,
        names=tuple(message[out.name_at[i] : out.name_at[i] + out.name_len[i]] for i in names),
        data=message[out.data_at : out.data_at + out.data_len],
        extensions=message[out.ext_at : out.ext_at + out.ext_len],
    )


def faults_available() -> bool:
    """Whether the library was built with fault injection (-Dfault_injection=true)."""
    return lib.zc_faults_seen() != -errno.ENOTSUP


def arm_fault(call: str, nth: int, error: int, *, always: bool = False) -> None:
    """Let the `nth` system call of kind `call` ("*": any) from now on fail with errno `error`.

    With `always` all later ones fail too. `nth` 0 disarms. For tests; OSError ENOTSUP where the
    library was built without it.
    """
    _checked(lib.zc_faults_arm(call.encode(), nth, error, always))


def faults_seen() -> int:
    """How often the armed call was seen since it was armed."""
    return _checked(lib.zc_faults_seen())
