"""The main loop: the FUSE session on the relay, the control client beside it, and what ends them.

The process ends when the daemon closes either socket or sends SIGTERM (status 0), and when the
session fails (status 1; the daemon starts it again). `__main__` sees to it that it does not outlive
the daemon either.
"""

from __future__ import annotations

import logging
import os
import signal
import socket

import pyfuse3
import trio

from zcfs.fs import faults
from zcfs.fs.contents import Contents, build_root
from zcfs.fs.control import ControlClient
from zcfs.fs.operations import Operations
from zcfs.fs.tree import Tree

log = logging.getLogger(__name__)

MAX_TASKS = 1000
"""Requests in hand at once; past that, requests wait unread."""

GRACE = 1.0
"""Seconds that handlers have to finish when the process ends."""


def run(relay: socket.socket, control: socket.socket) -> int:
    """Serve until the end; takes both sockets over. Returns the process's exit status."""
    client = ControlClient(control)
    operations = Operations(Tree(build_root(Contents(client), faults.entries())))
    relay.setblocking(True)  # a reply that does not fit must wait: libfuse would lose it
    pyfuse3.init(operations, f"/dev/fd/{os.dup(relay.fileno())}", set())
    try:
        return trio.run(_main, relay, client)
    finally:
        pyfuse3.close(unmount=False)


async def _main(relay: socket.socket, client: ControlClient) -> int:
    status = 0
    async with trio.open_nursery() as nursery:
        session = trio.CancelScope()
        nursery.start_soon(_end_on_signal, session)
        nursery.start_soon(_end_with_control, client, session)
        with session:
            status = await _serve_session(relay)
        nursery.cancel_scope.cancel()
    return status


async def _serve_session(relay: socket.socket) -> int:
    """Run pyfuse3's loop. libfuse takes the end of a socket for an I/O error, which is no failure
    here."""
    try:
        await pyfuse3.main(max_tasks=MAX_TASKS)
    except Exception:
        if not is_closed(relay):
            log.exception("the FUSE session failed")
            return 1
        log.info("ending: the daemon has closed the relay")
    return 0


async def _end_on_signal(session: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            _end(session, "SIGTERM")


async def _end_with_control(client: ControlClient, session: trio.CancelScope) -> None:
    await client.run()
    _end(session, "the daemon has closed the control socket")


def _end(session: trio.CancelScope, why: str) -> None:
    log.info("ending: %s", why)
    session.deadline = min(session.deadline, trio.current_time() + GRACE)
    pyfuse3.terminate()


def is_closed(sock: socket.socket) -> bool:
    """Whether the peer of a connected socket is gone and nothing is left to read."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
