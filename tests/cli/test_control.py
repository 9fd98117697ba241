"""The control socket's client, against sockets that misbehave."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zcfs import control
from zcfs.errors import DaemonError, ZcfsError
from zcfs.mountinfo import Mount

OURS = (f"user_id={os.geteuid()}",)  # whoever mounted is who may answer
MOUNT = Mount(1, "0:77", "/mnt", ("rw",), "fuse.zcfs", "/src", OURS)
Serve = Callable[[bytes | None], None]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """serve(answer): a daemon that answers one client so; None: never."""
    monkeypatch.setattr(control, "runtime_dirs", lambda uid: [tmp_path])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "77.sock"))
        threads = []

        def answer_once(answer: bytes) -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(64)
                connection.sendall(answer)

        def start(answer: bytes | None) -> None:
            listener.listen()
            if answer is not None:
                threads.append(threading.Thread(target=answer_once, args=(answer,)))
                threads[-1].start()

        yield start
        for thread in threads:
            thread.join()


def test_an_answer(serve: Serve) -> None:
    serve(b'{"pid": 7}')
    assert control.query(MOUNT, "status") == {"pid": 7}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "hung up"),
        (b"nonsense", "no JSON"),
        (b"[1]", "no JSON object"),
        (b'{"error": "unknown verb"}', "unknown verb"),
    ],
)
def test_a_bad_answer(serve: Serve, answer: bytes, message: str) -> None:
    serve(answer)
    with pytest.raises(ZcfsError, match=message):
        control.query(MOUNT, "status")


def test_no_answer(serve: Serve) -> None:
    serve(None)
    with pytest.raises(DaemonError, match=r"does not answer within 0\.05 s"):
        control.query(MOUNT, "status", timeout=0.05)


@pytest.mark.usefixtures("serve")
def test_a_socket_that_nobody_listens_on() -> None:
    with pytest.raises(DaemonError, match="dead"):
        control.query(MOUNT, "status")


def test_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "runtime_dirs", lambda uid: [tmp_path])
    with pytest.raises(DaemonError, match=r"dead|only root"):
        control.query(MOUNT, "status")
