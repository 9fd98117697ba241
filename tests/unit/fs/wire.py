"""The FUSE messages that the tests exchange with the control plane, as bytes.

Layouts: the kernel's `include/uapi/linux/fuse.h`, protocol 7.45; little-endian machines only.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
ENTRY_OUT = struct.Struct("<QQQQII")  # and ATTR
ATTR_OUT = struct.Struct("<QII")  # and ATTR
OPEN_OUT = struct.Struct("<QIi")
DIRENT = struct.Struct("<QQII")  # and the name, padded to 8
STATFS_OUT = struct.Struct("<QQQQQIIII6I")
INIT_IN = struct.Struct("<IIIII11I")
INIT_OUT = struct.Struct("<IIIIHHIIHHIIH11H")

ROOT = 1
MAX_READ = 128 << 10
UID, GID, PID = 1000, 1000, 4711

OPCODES = {
    name: code
    for code, name in (
        (1, "LOOKUP"), (2, "FORGET"), (3, "GETATTR"), (4, "SETATTR"), (5, "READLINK"),
        (6, "SYMLINK"), (8, "MKNOD"), (9, "MKDIR"), (10, "UNLINK"), (11, "RMDIR"),
        (12, "RENAME"), (13, "LINK"), (14, "OPEN"), (15, "READ"), (16, "WRITE"),
        (17, "STATFS"), (18, "RELEASE"), (20, "FSYNC"), (21, "SETXATTR"), (22, "GETXATTR"),
        (23, "LISTXATTR"), (24, "REMOVEXATTR"), (25, "FLUSH"), (26, "INIT"), (27, "OPENDIR"),
        (28, "READDIR"), (29, "RELEASEDIR"), (30, "FSYNCDIR"), (31, "GETLK"), (32, "SETLK"),
        (33, "SETLKW"), (34, "ACCESS"), (35, "CREATE"), (36, "INTERRUPT"), (37, "BMAP"),
        (38, "DESTROY"), (39, "IOCTL"), (40, "POLL"), (41, "NOTIFY_REPLY"),
        (42, "BATCH_FORGET"), (43, "FALLOCATE"), (44, "READDIRPLUS"), (45, "RENAME2"),
        (46, "LSEEK"), (47, "COPY_FILE_RANGE"), (48, "SETUPMAPPING"), (49, "REMOVEMAPPING"),
        (50, "SYNCFS"), (51, "TMPFILE"), (52, "STATX"), (53, "COPY_FILE_RANGE_64"),
    )
}  # fmt: skip
NO_REPLY = {"FORGET", "BATCH_FORGET", "INTERRUPT", "NOTIFY_REPLY"}

# INIT flags
ASYNC_READ = 1 << 0
ATOMIC_O_TRUNC = 1 << 3
BIG_WRITES = 1 << 5
DO_READDIRPLUS = 1 << 13
PARALLEL_DIROPS = 1 << 18
MAX_PAGES = 1 << 22
INIT_EXT = 1 << 30

FOPEN_DIRECT_IO = 1
FOPEN_KEEP_CACHE = 2


def request(opcode: int, unique: int, nodeid: int, body: bytes = b"") -> bytes:
    length = IN_HEADER.size + len(body)
    return IN_HEADER.pack(length, opcode, unique, nodeid, UID, GID, PID, 0, 0) + body


def init(flags: int = DO_READDIRPLUS, minor: int = 45, flags2: int = 0) -> bytes:
    return INIT_IN.pack(7, minor, MAX_READ, flags, flags2, *[0] * 11)


def names(*values: bytes) -> bytes:
    return b"".join(value + b"\0" for value in values)


def open_in(flags: int = 0) -> bytes:
    return struct.pack("<II", flags, 0)


def read_in(fh: int, offset: int, size: int) -> bytes:
    return struct.pack("<QQIIQII", fh, offset, size, 0, 0, 0, 0)


def release_in(fh: int) -> bytes:
    return struct.pack("<QIIQ", fh, 0, 0, 0)


def smallest_bodies(fh: int, nodeid: int) -> dict[str, bytes]:
    """A well-formed request body for every opcode that may come for a node, by name."""
    lock = struct.pack("<QQ QQII II", fh, 1, 0, 0, 0, 0, 0, 0)
    return {
        "LOOKUP": names(b"absent"),
        "FORGET": struct.pack("<Q", 1),
        "GETATTR": struct.pack("<IIQ", 0, 0, 0),
        "SETATTR": struct.pack("<II6Q8I", 1, 0, *[0] * 14),
        "READLINK": b"",
        "SYMLINK": names(b"new", b"target"),
        "MKNOD": struct.pack("<IIII", 0o100644, 0, 0, 0) + names(b"new"),
        "MKDIR": struct.pack("<II", 0o755, 0) + names(b"new"),
        "UNLINK": names(b"version"),
        "RMDIR": names(b"version"),
        "RENAME": struct.pack("<Q", nodeid) + names(b"version", b"new"),
        "LINK": struct.pack("<Q", nodeid) + names(b"new"),
        "OPEN": open_in(),
        "READ": read_in(fh, 0, 4096),
        "WRITE": struct.pack("<QQIIQII", fh, 0, 1, 0, 0, 0, 0) + b"x",
        "STATFS": b"",
        "RELEASE": release_in(fh),
        "FSYNC": struct.pack("<QII", fh, 0, 0),
        "SETXATTR": struct.pack("<II", 1, 0) + names(b"user.a") + b"x",
        "GETXATTR": struct.pack("<II", 0, 0) + names(b"user.a"),
        "LISTXATTR": struct.pack("<II", 0, 0),
        "REMOVEXATTR": names(b"user.a"),
        "FLUSH": struct.pack("<QIIQ", fh, 0, 0, 0),
        "OPENDIR": open_in(),
        "READDIR": read_in(fh, 0, 4096),
        "RELEASEDIR": release_in(fh),
        "FSYNCDIR": struct.pack("<QII", fh, 0, 0),
        "GETLK": lock,
        "SETLK": lock,
        "SETLKW": lock,
        "ACCESS": struct.pack("<II", 4, 0),
        "CREATE": struct.pack("<IIII", 1, 0o644, 0, 0) + names(b"new"),
        "BMAP": struct.pack("<QII", 0, 512, 0),
        "IOCTL": struct.pack("<QIIQII", fh, 0, 0x80086601, 0, 0, 8),
        "POLL": struct.pack("<QQII", fh, 0, 0, 1),
        "BATCH_FORGET": struct.pack("<IIQQ", 1, 0, nodeid, 1),
        "FALLOCATE": struct.pack("<QQQII", fh, 0, 4096, 0, 0),
        "READDIRPLUS": read_in(fh, 0, 4096),
        "RENAME2": struct.pack("<QII", nodeid, 0, 0) + names(b"version", b"new"),
        "LSEEK": struct.pack("<QQII", fh, 0, 3, 0),
        "COPY_FILE_RANGE": struct.pack("<7Q", fh, 0, nodeid, fh, 0, 1, 0),
        "SETUPMAPPING": struct.pack("<5Q", fh, 0, 0, 0, 0),
        "REMOVEMAPPING": struct.pack("<II", 0, 0),
        "SYNCFS": struct.pack("<Q", 0),
        "TMPFILE": struct.pack("<IIII", 2, 0o600, 0, 0) + names(b""),
        "STATX": struct.pack("<IIQII", 0, 0, 0, 0, 0x7FF),
        "COPY_FILE_RANGE_64": struct.pack("<7Q", fh, 0, nodeid, fh, 0, 1, 0),
    }


@dataclass(frozen=True)
class Reply:
    """One message from the control plane."""

    unique: int
    error: int
    """0, or a positive errno."""
    body: bytes

    @classmethod
    def parse(cls, message: bytes) -> Reply:
        length, error, unique = OUT_HEADER.unpack_from(message)
        assert length == len(message)
        assert error <= 0, "a notification"
        return cls(unique, -error, message[OUT_HEADER.size :])


@dataclass(frozen=True)
class Attr:
    ino: int
    size: int
    blocks: int
    mode: int
    nlink: int
    uid: int
    gid: int
    mtime_ns: int

    @classmethod
    def parse(cls, data: bytes) -> Attr:
        (ino, size, blocks, _, mtime, _, _, mtime_part, _, mode, nlink, uid, gid, _, _, _) = (
            ATTR.unpack(data)
        )
        return cls(ino, size, blocks, mode, nlink, uid, gid, mtime * 10**9 + mtime_part)


@dataclass(frozen=True)
class Entry:
    nodeid: int
    entry_valid: float
    attr_valid: float
    attr: Attr

    @classmethod
    def parse(cls, data: bytes) -> Entry:
        nodeid, _, entry_s, attr_s, entry_ns, attr_ns = ENTRY_OUT.unpack_from(data)
        attr = Attr.parse(data[ENTRY_OUT.size :])
        return cls(nodeid, entry_s + entry_ns / 1e9, attr_s + attr_ns / 1e9, attr)


@dataclass(frozen=True)
class Dirent:
    name: bytes
    ino: int
    offset: int
    entry: Entry


def parse_direntplus(data: bytes) -> list[Dirent]:
    """The entries of a READDIRPLUS reply."""
    entries = []
    size = ENTRY_OUT.size + ATTR.size
    while data:
        entry = Entry.parse(data[:size])
        ino, offset, length, _ = DIRENT.unpack_from(data, size)
        start = size + DIRENT.size
        entries.append(Dirent(data[start : start + length], ino, offset, entry))
        data = data[start + (length + 7) // 8 * 8 :]
    return entries
