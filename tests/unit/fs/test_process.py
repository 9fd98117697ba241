"""The process as the daemon sees it: bytes on the relay, ends, failures."""

from __future__ import annotations

import errno
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pyfuse3
import pytest

from . import wire
from .conftest import STATS, STATUS
from .plane import FILES, PATIENCE, TREE, Plane

ROOT = TREE + 1
VERSION = FILES[b"version"]
FAULTS = {name: TREE + 0x1001 + n for n, name in enumerate(("raise", "hang", "block", "exit"))}
FILE_MODE, DIRECTORY_MODE = 0o100444, 0o040555


# Bytes


@pytest.mark.parametrize("minor", [31, 38, 45])
@pytest.mark.parametrize("flags", [wire.DO_READDIRPLUS, wire.DO_READDIRPLUS | wire.INIT_EXT])
def test_init(tmp_path: Path, flags: int, minor: int) -> None:
    with Plane(tmp_path / "log") as plane:
        reply = plane.start(flags, minor)
        fields = wire.INIT_OUT.unpack(reply.body)
        assert fields[0] == 7
        assert fields[3] & flags == flags
        assert fields[6] == wire.MAX_READ  # max_write


def test_lookup_reply(plane: Plane) -> None:
    reply = plane.good("LOOKUP", wire.ROOT, wire.names(b".zcfs"))
    started = wire.Entry.parse(reply.body).attr.mtime_ns
    seconds, part = divmod(started, 10**9)
    timeouts = struct.pack("<QQII", 60, 60, 0, 0)
    attr = wire.ATTR.pack(
        ROOT, 0, 0, *[seconds] * 3, *[part] * 3, DIRECTORY_MODE, 3, 0, 0, 0, 4096, 0
    )
    assert reply.body == struct.pack("<QQ", ROOT, 0) + timeouts + attr


def test_getattr_reply(plane: Plane) -> None:
    reply = plane.good("GETATTR", VERSION, bytes(16))
    attr = wire.Attr.parse(reply.body[16:])
    assert reply.body[:16] == bytes(16), "the kernel must ask for a file's size each time"
    assert (attr.ino, attr.mode, attr.nlink, attr.uid, attr.gid) == (VERSION, FILE_MODE, 1, 0, 0)
    assert (attr.size, attr.blocks) == (6, 1)


def test_open_reply_is_direct_io(plane: Plane) -> None:
    fh, flags, backing = wire.OPEN_OUT.unpack(plane.good("OPEN", VERSION, wire.open_in()).body)
    assert flags == wire.FOPEN_DIRECT_IO
    assert backing == 0
    assert plane.read(VERSION, fh) == b"0.1.0\n"
    assert plane.read(VERSION, fh, 2, 3) == b"1.0"
    assert plane.read(VERSION, fh, 6) == b""


def read_directory(plane: Plane, nodeid: int, size: int) -> list[wire.Dirent]:
    """All entries, by READDIRPLUS of at most `size` bytes."""
    fh = wire.OPEN_OUT.unpack(plane.good("OPENDIR", nodeid, wire.open_in()).body)[0]
    entries: list[wire.Dirent] = []
    while True:
        offset = entries[-1].offset if entries else 0
        reply = plane.good("READDIRPLUS", nodeid, wire.read_in(fh, offset, size))
        assert len(reply.body) <= size
        if not reply.body:
            break
        entries += wire.parse_direntplus(reply.body)
    plane.good("RELEASEDIR", nodeid, wire.release_in(fh))
    return entries


@pytest.mark.parametrize("size", [200, 512, 4096, wire.MAX_READ])
def test_readdirplus(plane: Plane, size: int) -> None:
    entries = read_directory(plane, ROOT, size)
    assert [entry.name for entry in entries] == [b".", b"..", *FILES, b".fault"]
    for entry in entries:
        assert entry.ino == entry.entry.nodeid == entry.entry.attr.ino
        assert entry.ino >= TREE
    assert {entry.name: entry.ino for entry in entries if entry.name in FILES} == FILES


def test_statfs_reply(plane: Plane) -> None:
    fields = wire.STATFS_OUT.unpack(plane.good("STATFS", ROOT).body)
    assert fields[:9] == (0, 0, 0, 10, 0, 4096, 255, 4096, 0)


def test_getxattr_and_listxattr(plane: Plane) -> None:
    name = wire.names(b"user.a")
    for size in (0, 4096):
        assert plane.call("GETXATTR", VERSION, struct.pack("<II", size, 0) + name).error == (
            errno.ENODATA
        )
    assert plane.good("LISTXATTR", VERSION, struct.pack("<II", 0, 0)).body == bytes(8)
    assert plane.good("LISTXATTR", VERSION, struct.pack("<II", 4096, 0)).body == b""


# Every opcode

EXPECTED = {
    "LOOKUP": (errno.ENOENT, errno.ENOTDIR),
    "READLINK": errno.EINVAL,
    "OPEN": (errno.EISDIR, 0),
    "OPENDIR": (0, errno.ENOTDIR),
    "READDIRPLUS": errno.ESTALE,  # the handle is a file's
    "WRITE": errno.EBADF,
    "GETXATTR": errno.ENODATA,
    **dict.fromkeys(
        ("SETATTR", "SYMLINK", "MKNOD", "MKDIR", "UNLINK", "RMDIR", "RENAME", "RENAME2", "LINK",
         "CREATE", "SETXATTR", "REMOVEXATTR"), errno.EROFS),
    **dict.fromkeys(
        ("GETATTR", "READ", "STATFS", "FSYNC", "LISTXATTR", "FLUSH", "RELEASEDIR", "FSYNCDIR",
         "ACCESS", "POLL", "RELEASE"), 0),
}  # fmt: skip
"""By opcode: the errno for a directory and for a file, or for both."""

UNKNOWN_TO_PYFUSE3 = {
    "READDIR", "GETLK", "SETLK", "SETLKW", "BMAP", "IOCTL", "FALLOCATE", "LSEEK",
    "COPY_FILE_RANGE", "SETUPMAPPING", "REMOVEMAPPING", "SYNCFS", "TMPFILE", "STATX",
    "COPY_FILE_RANGE_64",
}  # fmt: skip
"""ENOSYS: the daemon must answer these itself, or turn them into what pyfuse3 knows."""

if not hasattr(pyfuse3.Operations, "poll"):  # before 3.5
    UNKNOWN_TO_PYFUSE3.add("POLL")


def test_every_opcode(plane: Plane) -> None:
    fh = plane.open(VERSION)
    bodies = wire.smallest_bodies(fh, ROOT)
    release = bodies.pop("RELEASE")
    special = {"INIT", "DESTROY", "INTERRUPT", "NOTIFY_REPLY", "RELEASE"}
    assert set(bodies) == set(wire.OPCODES) - special
    answered = {}
    for name, body in [*bodies.items(), ("RELEASE", release)]:
        uniques = [plane.send(name, nodeid, body) for nodeid in (ROOT, VERSION)]
        if name not in wire.NO_REPLY:
            answered[name] = tuple(plane.wait_reply(unique).error for unique in uniques)
    expected = EXPECTED | dict.fromkeys(UNKNOWN_TO_PYFUSE3, errno.ENOSYS)
    assert answered == {
        name: error if isinstance(error, tuple) else (error, error)
        for name, error in expected.items()
    }
    assert plane.content(VERSION) == b"0.1.0\n"


def test_the_largest_messages(plane: Plane) -> None:
    data = bytes(wire.MAX_READ)
    body = struct.pack("<QQIIQII", 1, 0, len(data), 0, 0, 0, 0) + data
    assert plane.call("WRITE", VERSION, body).error == errno.EBADF
    value = bytes(1 << 16)
    body = struct.pack("<II", len(value), 0) + wire.names(b"user.a") + value
    assert plane.call("SETXATTR", VERSION, body).error == errno.EROFS
    assert plane.content(VERSION) == b"0.1.0\n"


def test_a_read_of_128_kib(plane: Plane) -> None:
    padding = "x" * (wire.MAX_READ + 5)
    plane.daemon.answers["status"] = b'{"padding":"%s"}' % padding.encode()
    nodeid = FILES[b"status.json"]
    fh = plane.open(nodeid)
    first = plane.read(nodeid, fh)
    assert len(first) == wire.MAX_READ
    rest = plane.read(nodeid, fh, wire.MAX_READ)
    assert first + rest == b'{\n  "padding": "%s"\n}\n' % padding.encode()


def test_forget_of_everything_forgets_nothing(plane: Plane) -> None:
    plane.lookup(wire.ROOT, b".zcfs")
    plane.send("FORGET", ROOT, struct.pack("<Q", 1000))
    forgets = b"".join(struct.pack("<QQ", nodeid, 7) for nodeid in (ROOT, VERSION, TREE + 999))
    plane.send("BATCH_FORGET", 0, struct.pack("<II", 3, 0) + forgets)
    assert plane.getattr(VERSION).size == 6


# Contents


def test_documents_are_the_daemons(plane: Plane) -> None:
    assert json.loads(plane.content(FILES[b"status.json"])) == STATUS
    assert json.loads(plane.content(FILES[b"stats.json"])) == STATS
    metrics = plane.content(FILES[b"metrics"])
    assert b'\nzcfs_requests_total{op="LOOKUP"} 10\n' in metrics
    assert metrics.endswith(b"\n")


def test_size_after_open(plane: Plane) -> None:
    nodeid = FILES[b"metrics"]
    assert plane.getattr(nodeid).size == 0
    fh = plane.open(nodeid)
    assert plane.getattr(nodeid).size == len(plane.read(nodeid, fh)) > 0


def test_opens_in_one_burst_share_questions(quiet_plane: Plane) -> None:
    plane, daemon = quiet_plane, quiet_plane.daemon
    nodeid = FILES[b"stats.json"]
    first = plane.send("OPEN", nodeid, wire.open_in())
    assert daemon.asked.get(timeout=PATIENCE) == "stats"
    burst = [plane.send("OPEN", nodeid, wire.open_in()) for _ in range(20)]
    plane.getattr(VERSION)  # so the burst has been taken
    daemon.answer({"n": 1})
    assert daemon.asked.get(timeout=PATIENCE) == "stats"
    daemon.answer({"n": 2})
    replies = [plane.wait_reply(unique) for unique in [first, *burst]]
    handles = [wire.OPEN_OUT.unpack(reply.body)[0] for reply in replies]
    assert len(set(handles)) == 21
    texts = [plane.read(nodeid, fh) for fh in handles]
    assert texts == [b'{\n  "n": 1\n}\n'] + [b'{\n  "n": 2\n}\n'] * 20
    assert daemon.count == 2


def test_a_bad_answer_is_eio_and_one_line(plane: Plane) -> None:
    plane.daemon.answers["status"] = {"error": "out of order"}
    assert plane.call("OPEN", FILES[b"status.json"], wire.open_in()).error == errno.EIO
    (line,) = plane.log_lines()
    assert line.endswith("open: the daemon refused 'status': out of order")
    assert plane.content(FILES[b"stats.json"])


# Failures


def test_a_handler_that_raises(plane: Plane) -> None:
    assert plane.call("OPEN", FAULTS["raise"], wire.open_in()).error == errno.EIO
    lines = plane.log_lines()
    assert lines[0].endswith("ERROR zcfs.fs.guard: open failed")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "RuntimeError: this file fails on purpose"
    assert plane.content(VERSION) == b"0.1.0\n"


def test_handlers_that_hang_delay_nothing(quiet_plane: Plane) -> None:
    for _ in range(150):  # more than pyfuse3's own limit of tasks
        quiet_plane.send("OPEN", FAULTS["hang"], wire.open_in())
    assert quiet_plane.content(VERSION) == b"0.1.0\n"


def test_an_exit_is_seen_and_a_new_process_serves_the_same_nodes(
    plane: Plane, tmp_path: Path
) -> None:
    fh = plane.open(VERSION)
    plane.send("OPEN", FAULTS["exit"], wire.open_in())
    assert plane.wait_end() == 70
    with Plane(tmp_path / "second") as second:
        second.start()
        for name, nodeid in FILES.items():
            assert second.getattr(nodeid).ino == nodeid
            assert second.lookup(ROOT, name).nodeid == nodeid
        assert second.call("READ", VERSION, wire.read_in(fh, 0, 10)).error == errno.ESTALE
        assert second.call("GETATTR", FAULTS["exit"], bytes(16)).error == errno.ESTALE
        second.good("RELEASE", VERSION, wire.release_in(fh))


def test_fault_files_are_absent_by_default(tmp_path: Path) -> None:
    with Plane(tmp_path / "log", ZCFS_TEST_FAULTS="") as plane:
        plane.start()
        assert plane.call("LOOKUP", ROOT, wire.names(b".fault")).error == errno.ENOENT
        assert [e.name for e in read_directory(plane, ROOT, 4096)] == [b".", b"..", *FILES]


# Ends


def test_sigterm(quiet_plane: Plane) -> None:
    quiet_plane.process.terminate()
    assert quiet_plane.wait_end() == 0


def test_sigterm_with_a_handler_that_hangs(quiet_plane: Plane) -> None:
    quiet_plane.send("OPEN", FAULTS["hang"], wire.open_in())
    quiet_plane.getattr(VERSION)
    quiet_plane.process.terminate()
    assert quiet_plane.wait_end() == 0


def test_sigint_is_ignored(plane: Plane) -> None:
    os.kill(plane.process.pid, signal.SIGINT)
    assert plane.content(VERSION) == b"0.1.0\n"


@pytest.mark.parametrize("which", ["relay", "control", "both"])
def test_the_daemon_closes(quiet_plane: Plane, which: str) -> None:
    if which != "control":
        quiet_plane.relay.close()
    if which != "relay":
        quiet_plane.daemon.close()
    assert quiet_plane.wait_end() == 0
    text = quiet_plane.log_text()
    assert "Traceback" not in text
    assert "ending: the daemon has closed the " in text


def test_the_daemon_closes_before_init(tmp_path: Path) -> None:
    with Plane(tmp_path / "log") as plane:
        plane.relay.close()
        assert plane.wait_end() == 0


def test_a_message_that_is_no_request_ends_the_process_with_a_reason(quiet_plane: Plane) -> None:
    quiet_plane.relay.send(b"short")
    assert quiet_plane.wait_end() == 1
    assert "the FUSE session failed" in quiet_plane.log_text()


PARENT = """
import subprocess, sys
fds = [int(fd) for fd in sys.argv[1:]]
options = ["--relay-fd", sys.argv[1], "--control-fd", sys.argv[2]]
subprocess.Popen([sys.executable, "-m", "zcfs.fs", *options], pass_fds=fds)
sys.stdin.read()
"""


def test_it_dies_with_its_parent() -> None:
    """The test, not the parent, holds the daemon's ends: so their end cannot be what ends it."""
    relay, relay_inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control, control_inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    alive, held = os.pipe()  # `held` stays open as long as the parent or the process lives
    fds = relay_inner.fileno(), control_inner.fileno(), held
    command = [sys.executable, "-c", PARENT, *map(str, fds)]
    with relay, control, subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=fds) as parent:
        for sock in (relay_inner, control_inner):
            sock.close()
        os.close(held)
        relay.settimeout(PATIENCE)
        relay.send(wire.request(wire.OPCODES["INIT"], 2, 0, wire.init()))
        assert wire.Reply.parse(relay.recv(4096)).error == 0
        parent.kill()
        assert select.select([alive], [], [], PATIENCE)[0] == [alive]
        assert os.read(alive, 1) == b""
    os.close(alive)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "two options are needed"),
        (["--relay-fd", "0"], "two options are needed"),
        (["--relay-fd", "0", "--other", "0"], "two options are needed"),
        (["--relay-fd", "x", "--control-fd", "0"], "invalid literal"),
        (["--relay-fd", "0", "--control-fd", "0"], "not a socket|non-socket"),
        (["--relay-fd", "999", "--control-fd", "0"], "Bad file descriptor"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zcfs.fs", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    first, usage = done.stderr.splitlines()
    assert re.match(f"zcfs.fs: .*({message})", first)
    assert usage.startswith("usage: ")


def test_a_stream_socket_is_refused() -> None:
    ours, theirs = socket.socketpair()
    fd = str(theirs.fileno())
    done = subprocess.run(
        [sys.executable, "-m", "zcfs.fs", "--relay-fd", fd, "--control-fd", fd],
        pass_fds=(theirs.fileno(),),
        capture_output=True,
        text=True,
    )
    ours.close()
    theirs.close()
    assert done.returncode == 2
    assert "is not a unix SOCK_SEQPACKET socket" in done.stderr
