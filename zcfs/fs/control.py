"""Questions to the daemon over the control socket.

A verb goes out in one datagram, its answer, JSON, comes back in one. The socket carries no request
numbers, so one question at most is on the way. Who asks while the same verb waits to be sent joins
that question; who asks while it is on the way gets a new one: an answer is never older than its
question.

Concurrency: all state is touched by this process's one thread, and only between awaits. `fetch`
finds or queues its round without an await; `_send_rounds` takes a round out of the queue and makes
it the one in flight without an await. An await in between would let a caller join a question that
is already gone. A caller that gives up leaves its round where it is: the answer still has to be
taken off the socket, in order.
"""

from __future__ import annotations

import logging
import math
import socket
from typing import Any

import trio

log = logging.getLogger(__name__)

Document = dict[str, Any]
"""A JSON object from the daemon."""

TIMEOUT = 5.0
"""Seconds to wait for an answer; the daemon answers from memory, so more means that it is in
trouble."""

MAX_ANSWER = 1 << 20
"""Bytes; larger than any datagram that a default socket buffer lets through."""


class ControlError(Exception):
    """The daemon's answer did not come, or was none."""


class _Round:
    """One question and all who wait for its answer."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.done = trio.Event()
        self._answer = b""
        self._truncated = False

    def settle(self, answer: bytes, truncated: bool) -> None:
        self._answer, self._truncated = answer, truncated
        self.done.set()

    def document(self) -> Document:
        if self._truncated:
            raise ControlError(f"the answer to {self.verb!r} has more than {MAX_ANSWER} bytes")
        return parse_answer(self.verb, self._answer)


def parse_answer(verb: str, answer: bytes) -> Document:
    """The object in `answer`; bytes that are not UTF-8 (file names) become lone surrogates.

    Raises:
        ControlError: it is not a JSON object, or it is the daemon's `{"error": …}`.
    """
    import json

    try:
        document = json.loads(answer.decode(errors="surrogateescape"))
    except ValueError as error:
        raise ControlError(f"the answer to {verb!r} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ControlError(f"the answer to {verb!r} is not a JSON object")
    if "error" in document:
        raise ControlError(f"the daemon refused {verb!r}: {document['error']}")
    return document


class ControlClient:
    """The client end of the control socket (AF_UNIX, SOCK_SEQPACKET), which it takes over."""

    def __init__(self, sock: socket.socket, timeout: float = TIMEOUT) -> None:
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._timeout = timeout
        self._queued: dict[str, _Round] = {}
        self._in_flight: _Round | None = None
        self._wake, self._verbs = trio.open_memory_channel[str](math.inf)

    async def fetch(self, verb: str) -> Document:
        """Ask `verb` and return the answer.

        Raises:
            ControlError: no answer in time, or a bad one.
        """
        round_ = self._queued.get(verb) or self._queue(verb)
        with trio.move_on_after(self._timeout) as scope:
            await round_.done.wait()
        if scope.cancelled_caught:
            raise ControlError(f"no answer to {verb!r} within {self._timeout:g} s")
        return round_.document()

    def _queue(self, verb: str) -> _Round:
        try:
            self._wake.send_nowait(verb)
        except trio.ClosedResourceError:
            raise ControlError("the daemon has closed the control socket") from None
        round_ = self._queued[verb] = _Round(verb)
        return round_

    async def run(self) -> None:
        """Carry questions and answers until the daemon closes its end; then close ours."""
        with self._sock, self._wake, self._verbs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_rounds)
                await self._receive_answers()
                nursery.cancel_scope.cancel()

    async def _send_rounds(self) -> None:
        async for verb in self._verbs:
            self._in_flight = round_ = self._queued.pop(verb)
            try:
                await self._sock.send(verb.encode())
            except OSError as error:
                log.info("control socket: %s", error)
                return  # the receiver sees the end too
            await round_.done.wait()

    async def _receive_answers(self) -> None:
        while True:
            try:
                answer, _, flags, _ = await self._sock.recvmsg(MAX_ANSWER)
            except OSError as error:
                log.info("control socket: %s", error)
                return
            if not answer:
                return
            round_, self._in_flight = self._in_flight, None
            if round_ is None:
                log.warning("the daemon answered %d bytes to no question", len(answer))
            else:
                round_.settle(answer, bool(flags & socket.MSG_TRUNC))
