"""The extension takes messages apart as the C library does.

The golden bytes of every opcode are in native/tests/test_wire.c; here are only a few, to see that
what crosses into Python is right.
"""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zcfs
from zcfs import _native

LOOKUP, SYMLINK, MKDIR, WRITE, SETXATTR, INTERRUPT = 1, 6, 9, 16, 21, 36
GROUPS = struct.pack("<IIII", 16, 32, 1, 1002)
ERRORS = {errno.EPROTO, errno.EOPNOTSUPP, errno.EINVAL, errno.ENAMETOOLONG}


def message(opcode: int, body: bytes, extensions: bytes = b"") -> bytes:
    size = 40 + len(body) + len(extensions)
    head = struct.pack(
        "<IIQQIIIHH", size, opcode, 258, 1, 1000, 1001, 4242, len(extensions) // 8, 0
    )
    return head + body + extensions


def test_version_is_the_package_s() -> None:
    assert _native.version() == zcfs.__version__


def test_name() -> None:
    got = _native.parse_message(message(LOOKUP, b"a.b\0"))
    assert got == _native.Message("LOOKUP", 0, (b"a.b",), b"", b"")


def test_two_names_and_extensions() -> None:
    got = _native.parse_message(message(SYMLINK, b"link\0../t\0", GROUPS))
    assert got == _native.Message("SYMLINK", 0, (b"link", b"../t"), b"", GROUPS)


def test_data() -> None:
    fixed = struct.pack("<QQIIQII", 1, 4096, 3, 0, 0, 0, 0)
    got = _native.parse_message(message(WRITE, fixed + b"\0/\xff"))
    assert got == _native.Message("WRITE", 40, (), b"\0/\xff", b"")


def test_name_and_data() -> None:
    fixed = struct.pack("<IIII", 2, 0, 0, 0)
    got = _native.parse_message(message(SETXATTR, fixed + b"user.a\0vw"))
    assert got == _native.Message("SETXATTR", 16, (b"user.a",), b"vw", b"")


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (b"", errno.EPROTO),
        (message(LOOKUP, b"a"), errno.EPROTO),
        (message(LOOKUP, b"a\0")[:-1], errno.EPROTO),
        (message(INTERRUPT, b"1234567"), errno.EPROTO),
        (message(LOOKUP, b"a\0", GROUPS), errno.EPROTO),
        (message(99, b""), errno.EOPNOTSUPP),
        (message(LOOKUP, b"..\0"), errno.EINVAL),
        (message(LOOKUP, b"a/b\0"), errno.EINVAL),
        (message(LOOKUP, b"n" * 256 + b"\0"), errno.ENAMETOOLONG),
    ],
)
def test_malformed(bad: bytes, error: int) -> None:
    with pytest.raises(OSError) as caught:
        _native.parse_message(bad)
    assert caught.value.errno == error


@settings(deadline=None)
@given(st.integers(0, 64), st.binary(max_size=200), st.integers(0, 4))
def test_any_bytes(opcode: int, body: bytes, units: int) -> None:
    extensions = (GROUPS * 2)[: units * 8]
    try:
        got = _native.parse_message(message(opcode, body, extensions))
    except OSError as error:
        assert error.errno in ERRORS
        return
    taken = got.fixed_size + sum(len(name) + 1 for name in got.names) + len(got.data)
    assert got.opcode == "INIT" or (taken, got.extensions) == (len(body), extensions)


def test_faults() -> None:
    if not _native.faults_available():
        with pytest.raises(OSError) as caught:
            _native.arm_fault("open", 1, errno.EIO)
        assert caught.value.errno == errno.ENOTSUP
        return
    _native.arm_fault("no such call", 1, errno.EIO)
    assert _native.faults_seen() == 0
    _native.arm_fault("", 0, 0)
