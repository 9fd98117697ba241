"""What the extension built from native/zcfs.h offers, as far as zcfs._native uses it."""

from typing import Any, Protocol

class _CharPtr(Protocol): ...

class _Message(Protocol):
    opcode: int
    names: int
    fixed_size: int
    name_at: list[int]
    name_len: list[int]
    data_at: int
    data_len: int
    ext_at: int
    ext_len: int

class _FFI:
    def string(self, cdata: _CharPtr, maxlen: int = -1) -> bytes: ...
    def new(self, cdecl: str, init: Any = None) -> _Message: ...

class _Lib:
    def zc_version(self) -> _CharPtr: ...
    def zc_opcode_name(self, opcode: int) -> _CharPtr: ...
    def zc_message_parse(self, message: bytes, length: int, out: _Message) -> int: ...
    def zc_faults_arm(self, call: bytes, nth: int, error: int, always: bool) -> int: ...
    def zc_faults_seen(self) -> int: ...

ffi: _FFI
lib: _Lib
