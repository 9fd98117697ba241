"""A control plane under test: the process, and the daemon's ends of its two sockets."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import wire
from .wire import Reply

PATIENCE = 20.0
"""Seconds before a test takes silence for a failure."""

TREE = 1 << 63
FILES = {
    b"version": TREE + 2,
    b"status.json": TREE + 3,
    b"stats.json": TREE + 4,
    b"metrics": TREE + 5,
}


class FakeDaemon(threading.Thread):
    """The daemon's end of the control socket: answers by table, or lets the test answer.

    `answers[verb]` is an object (sent as JSON) or bytes (sent as they are). A verb without an
    answer goes to `asked`, and `answer` sends whatever the test wants.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.answers: dict[str, Any] = {}
        self.asked: queue.Queue[str] = queue.Queue()
        self.count = 0
        self._sock = sock

    def run(self) -> None:
        while verb := self._receive():
            self.count += 1
            if verb in self.answers:
                self.answer(self.answers[verb])
            else:
                self.asked.put(verb)

    def _receive(self) -> str:
        try:
            return self._sock.recv(4096).decode()
        except OSError:
            return ""

    def answer(self, value: Any) -> None:
        self._sock.send(value if isinstance(value, bytes) else json.dumps(value).encode())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it is closed already
            self._sock.shutdown(socket.SHUT_RDWR)
        self.join()
        self._sock.close()


class Plane:
    """Starts a control plane and speaks to it as the kernel would."""

    def __init__(self, log: Path, **environment: str) -> None:
        self.log = log
        self.relay, relay = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.relay.settimeout(PATIENCE)
        self.daemon = FakeDaemon(control)
        self.log_was_read = False
        self._unique = 0
        self._early: dict[int, Reply] = {}
        fds = relay.fileno(), client.fileno()
        options = ["--relay-fd", str(fds[0]), "--control-fd", str(fds[1])]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "zcfs.fs", *options],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                env=os.environ | environment,
            )
        relay.close()
        client.close()
        self.daemon.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.relay.close()
        self.daemon.close()

    # Messages

    def send(self, name: str, nodeid: int, body: bytes = b"") -> int:
        """Send one request; returns its unique."""
        self._unique += 2
        self.relay.send(wire.request(wire.OPCODES[name], self._unique, nodeid, body))
        return self._unique

    def receive(self) -> Reply:
        return Reply.parse(self.relay.recv(wire.MAX_READ + 4096))

    def wait_reply(self, unique: int) -> Reply:
        """The reply to `unique`; others that come first are kept."""
        while unique not in self._early:
            reply = self.receive()
            self._early[reply.unique] = reply
        return self._early.pop(unique)

    def call(self, name: str, nodeid: int, body: bytes = b"") -> Reply:
        return self.wait_reply(self.send(name, nodeid, body))

    # Requests that must work

    def start(self, flags: int = wire.DO_READDIRPLUS, minor: int = 45) -> Reply:
        return self.good("INIT", 0, wire.init(flags, minor))

    def good(self, name: str, nodeid: int, body: bytes = b"") -> Reply:
        reply = self.call(name, nodeid, body)
        assert reply.error == 0, f"{name}: {os.strerror(reply.error)}"
        return reply

    def lookup(self, parent: int, name: bytes) -> wire.Entry:
        return wire.Entry.parse(self.good("LOOKUP", parent, wire.names(name)).body)

    def getattr(self, nodeid: int) -> wire.Attr:
        body = self.good("GETATTR", nodeid, bytes(16)).body
        return wire.Attr.parse(body[wire.ATTR_OUT.size :])

    def open(self, nodeid: int) -> int:
        fh: int = wire.OPEN_OUT.unpack(self.good("OPEN", nodeid, wire.open_in()).body)[0]
        return fh

    def read(self, nodeid: int, fh: int, offset: int = 0, size: int = wire.MAX_READ) -> bytes:
        return self.good("READ", nodeid, wire.read_in(fh, offset, size)).body

    def content(self, nodeid: int) -> bytes:
        """Open, read and release a file."""
        fh = self.open(nodeid)
        data = self.read(nodeid, fh)
        self.good("RELEASE", nodeid, wire.release_in(fh))
        return data

    # The process

    def wait_end(self) -> int:
        return self.process.wait(PATIENCE)

    def log_text(self) -> str:
        """The log; a test that reads it is trusted to check it."""
        self.log_was_read = True
        return self.log.read_text()

    def log_lines(self) -> list[str]:
        """The log from WARNING up, tracebacks included."""
        lines = self.log_text().splitlines()
        return [line for line in lines if " INFO " not in line[:40]]
