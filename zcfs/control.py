"""The control socket of a mount: where it is, and how to ask it.

A daemon listens on RUNTIME_DIR/<minor>.sock, where minor is its mount's minor device number. A
client sends one line, a verb, and reads one JSON document up to the end of the stream. `pin LEN`
and `unpin LEN` are followed by LEN bytes: paths below the mount, each with a NUL at its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zcfs.errors import DaemonError, ZcfsError
from zcfs.mountinfo import FSTYPE, Mount, read

TIMEOUT = 5.0  #: seconds until a daemon that does not answer counts as hanging
PATHS_MOST = 1 << 20  #: bytes of paths that a daemon takes at once
RESETS = 3  #: connections that may be reset before that is an error
DEAD = "its daemon is dead"
HUNG = "its daemon does not answer"


def runtime_dirs(uid: int) -> list[Path]:
    """Where a daemon of `uid` puts its socket, the likeliest first."""
    if uid == 0:
        return [Path("/run/zcfs")]
    own = os.environ.get("XDG_RUNTIME_DIR") if uid == os.geteuid() else None
    dirs = [Path(own) / "zcfs"] if own else []
    return [*dirs, Path(f"/run/user/{uid}/zcfs"), Path(f"/tmp/zcfs-{uid}")]


def socket_path(mount: Mount) -> Path | None:
    """The socket of a mount, whether or not anybody listens; None when there is none."""
    uids = dict.fromkeys((mount.user_id, os.geteuid()))
    for directory in (d for uid in uids for d in runtime_dirs(uid)):
        path = directory / f"{mount.minor}.sock"
        if os.access(directory, os.X_OK) and path.is_socket():
            return path
    return None


def is_ours(mount: Mount) -> bool:
    """Whether this is a mount of zcfs: by its type, or a plain fuse mount with our socket."""
    return mount.fstype == FSTYPE or (mount.fstype == "fuse" and socket_path(mount) is not None)


def mounts() -> list[Mount]:
    """Every mount of zcfs that this process sees."""
    return [mount for mount in read() if is_ours(mount)]


def connect(mount: Mount, timeout: float = TIMEOUT) -> socket.socket:
    """A connection to the daemon of `mount`. DaemonError when nobody listens."""
    path = socket_path(mount)
    if path is None:
        if os.geteuid() not in (0, mount.user_id):
            raise DaemonError(f"{mount.mountpoint}: only root and user {mount.user_id} may ask it")
        raise DaemonError(f"{mount.mountpoint}: {DEAD}; mountctl umount cleans up")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        sock.connect(str(path))
        if peer(sock)[1] not in (0, mount.user_id):
            raise DaemonError(f"{path}: somebody else's socket, not the daemon's")
    except ConnectionRefusedError:
        sock.close()
        raise DaemonError(f"{mount.mountpoint}: {DEAD}; mountctl umount cleans up") from None
    except BaseException as exc:
        sock.close()
        if isinstance(exc, TimeoutError | BlockingIOError):
            raise DaemonError(_hung(mount, timeout)) from None
        raise
    return sock


def peer(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process that listens at the other end."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _gid = struct.unpack("3i", raw)
    return pid, uid


def query(mount: Mount, verb: str, timeout: float = TIMEOUT) -> dict[str, Any]:
    """Ask the daemon of `mount`: verb 'status' or 'stats'."""
    return _ask_again(mount, verb.encode() + b"\n", timeout)


def query_paths(
    mount: Mount, verb: str, paths: Sequence[str], timeout: float = TIMEOUT
) -> list[dict[str, Any]]:
    """Have the daemon pin or unpin files (`verb`); `paths` are relative to the mount's root.

    Returns an entry for each, in order: path, size, loaded, state, reason. ZcfsError for a path
    that is none, or too long a list of them.
    """
    words = [os.fsencode(path) for path in paths]
    if any(not word or b"\0" in word for word in words):
        raise ZcfsError(f"{mount.mountpoint}: a path is empty, or has a NUL in it")
    body = b"".join(word + b"\0" for word in words)
    if len(body) > PATHS_MOST:
        raise ZcfsError(f"{mount.mountpoint}: more than {PATHS_MOST} bytes of paths at once")
    answer = _ask_again(mount, b"%s %d\n%s" % (verb.encode(), len(body), body), timeout)
    entries: list[dict[str, Any]] = answer["pins"]
    return entries


def _ask_again(mount: Mount, request: bytes, timeout: float) -> dict[str, Any]:
    """Send and receive.

    A daemon that is just ending may still listen on the path that the next one takes over: what is
    reset is asked again.
    """
    for _ in range(RESETS):
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            return _ask(mount, request, timeout)
        time.sleep(0.05)
    raise DaemonError(f"{mount.mountpoint}: its daemon resets every connection")


def _ask(mount: Mount, request: bytes, timeout: float) -> dict[str, Any]:
    chunks = []
    try:
        with connect(mount, timeout) as sock:
            sock.sendall(request)
            while chunk := sock.recv(65536):
                chunks.append(chunk)
    except TimeoutError:
        raise DaemonError(_hung(mount, timeout)) from None
    except (ConnectionResetError, BrokenPipeError):
        raise
    except OSError as exc:
        raise DaemonError(f"{mount.mountpoint}: {exc.strerror or exc} on its socket") from exc
    return _document(mount, b"".join(chunks))


def _hung(mount: Mount, timeout: float) -> str:
    return f"{mount.mountpoint}: {HUNG} within {timeout:g} s; mountctl umount --force ends it"


def _document(mount: Mount, raw: bytes) -> dict[str, Any]:
    if not raw:
        raise DaemonError(f"{mount.mountpoint}: its daemon hung up without an answer")
    try:
        document = json.loads(raw)
    except ValueError as exc:
        raise DaemonError(f"{mount.mountpoint}: its daemon sent no JSON: {raw[:80]!r}") from exc
    if not isinstance(document, dict):
        raise DaemonError(f"{mount.mountpoint}: its daemon sent no JSON object")
    if "error" in document and len(document) == 1:
        raise ZcfsError(f"{mount.mountpoint}: {document['error']}")
    return document
