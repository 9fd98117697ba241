"""The client of the control socket, against a daemon that the test plays."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

from zcfs.fs import control
from zcfs.fs.control import ControlClient, ControlError

pytestmark = pytest.mark.trio

TIMEOUT = 5.0


class Peer:
    """The daemon's end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = trio.socket.from_stdlib_socket(sock)

    async def question(self) -> str:
        return (await self.sock.recv(100)).decode()

    async def answer(self, value: Any) -> None:
        await self.sock.send(value if isinstance(value, bytes) else json.dumps(value).encode())


class Setting:
    """A running client and its peer; `results` has what each `fetch` came to, in order."""

    def __init__(self, nursery: trio.Nursery) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.peer = Peer(theirs)
        self.client = ControlClient(ours, TIMEOUT)
        self.nursery = nursery
        self.results: list[Any] = []
        self.ended = trio.Event()
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        await self.client.run()
        self.ended.set()

    async def ask(self, verb: str) -> None:
        """Ask in the background, and wait until nothing moves any more."""
        self.results.append(None)
        self.nursery.start_soon(self._fetch, verb, len(self.results) - 1)
        await trio.testing.wait_all_tasks_blocked()

    async def _fetch(self, verb: str, index: int) -> None:
        try:
            self.results[index] = await self.client.fetch(verb)
        except ControlError as error:
            self.results[index] = str(error)

    async def reply(self, value: Any) -> None:
        await self.peer.answer(value)
        await settled()


async def settled() -> None:
    """Let what is on the sockets arrive."""
    await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    async with trio.open_nursery() as nursery:
        setting = Setting(nursery)
        with setting.peer.sock:
            yield setting
        nursery.cancel_scope.cancel()


async def test_an_answer_reaches_its_question(setting: Setting) -> None:
    await setting.ask("status")
    assert await setting.peer.question() == "status"
    await setting.reply({"pid": 1})
    assert setting.results == [{"pid": 1}]


async def test_who_asks_before_the_question_is_sent_shares_it(setting: Setting) -> None:
    await setting.ask("status")
    await setting.ask("stats")  # waits for the answer to status
    await setting.ask("stats")
    assert await setting.peer.question() == "status"
    await setting.reply({"a": 1})
    assert await setting.peer.question() == "stats"
    await setting.reply({"b": 2})
    assert setting.results == [{"a": 1}, {"b": 2}, {"b": 2}]


async def test_who_asks_while_it_is_on_the_way_gets_a_newer_answer(setting: Setting) -> None:
    await setting.ask("status")
    assert await setting.peer.question() == "status"
    await setting.ask("status")
    await setting.ask("status")
    await setting.reply({"n": 1})
    assert setting.results == [{"n": 1}, None, None]
    assert await setting.peer.question() == "status"
    await setting.reply({"n": 2})
    assert setting.results == [{"n": 1}, {"n": 2}, {"n": 2}]


async def test_a_late_answer_is_not_given_to_the_next_question(
    setting: Setting, autojump_clock: trio.testing.MockClock
) -> None:
    await setting.ask("status")
    assert await setting.peer.question() == "status"
    await trio.sleep(TIMEOUT - 1)
    await setting.ask("stats")
    await trio.sleep(2)
    assert setting.results == ["no answer to 'status' within 5 s", None]
    await setting.peer.answer({"late": True})
    assert await setting.peer.question() == "stats"
    await setting.peer.answer({"right": True})
    await settled()
    assert setting.results[1] == {"right": True}


async def test_answers_of_many_kinds(setting: Setting) -> None:
    for answer, message in (
        (b"{", "the answer to 'status' is not JSON"),
        (b"[1]", "the answer to 'status' is not a JSON object"),
        ({"error": "no such verb"}, "the daemon refused 'status': no such verb"),
    ):
        await setting.ask("status")
        await setting.reply(answer)
        assert setting.results[-1].startswith(message)
    await setting.ask("status")
    await setting.reply(b'{"source": "/\xff"}')
    assert setting.results[-1] == {"source": "/\udcff"}


async def test_an_answer_that_is_too_long(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_ANSWER", 10)
    await settled()
    await setting.ask("status")  # its answer meets a buffer of the old size
    await setting.reply({})
    await setting.ask("status")
    await setting.reply({"key": "a long value"})
    assert setting.results[-1] == "the answer to 'status' has more than 10 bytes"


async def test_an_answer_to_no_question_is_logged_and_dropped(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    await settled()
    await setting.reply({"spurious": 1})
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        "the daemon answered 15 bytes to no question"
    ]
    await setting.ask("status")
    await setting.reply({"right": 1})
    assert setting.results == [{"right": 1}]


async def test_run_ends_when_the_daemon_closes(setting: Setting) -> None:
    setting.peer.sock.close()
    await setting.ended.wait()
    await setting.ask("status")
    assert setting.results == ["the daemon has closed the control socket"]


async def test_run_ends_when_the_daemon_closes_with_a_question_unread(setting: Setting) -> None:
    await setting.ask("status")
    setting.peer.sock.close()
    await setting.ended.wait()
