"""`python -m zcfs.fs --relay-fd N --control-fd M`: started by the daemon, never by hand.

It lives no longer than the daemon: the kernel kills it when the thread that started it ends, and
the end of either socket ends it. SIGINT is ignored, since Ctrl-C reaches the whole foreground
group: the daemon says when to end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

USAGE = "usage: python -m zcfs.fs --relay-fd N --control-fd M"
PR_SET_PDEATHSIG = 1


def parse(arguments: list[str]) -> tuple[int, int]:
    """The relay's and the control socket's descriptors."""
    values = dict(zip(arguments[::2], arguments[1::2], strict=False))
    if len(arguments) != 4 or set(values) != {"--relay-fd", "--control-fd"}:
        raise ValueError("two options are needed")
    return int(values["--relay-fd"]), int(values["--control-fd"])


def adopt(fd: int) -> socket.socket:
    """The inherited socket `fd`, no longer inheritable."""
    sock = socket.socket(fileno=fd)
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
        raise ValueError(f"descriptor {fd} is not a unix SOCK_SEQPACKET socket")
    sock.set_inheritable(False)
    return sock


def die_with_parent() -> None:
    """Be killed when the parent dies. There is nothing to clean up, and SIGTERM could find us
    stuck."""
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(0)


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the daemon's threads block it
    die_with_parent()
    try:
        relay, control = (adopt(fd) for fd in parse(arguments))
    except (ValueError, OSError) as error:
        print(f"zcfs.fs: {error}\n{USAGE}", file=sys.stderr)
        return 2
    from zcfs.fs import log, serve  # late: bad arguments are told at once

    log.setup()
    return serve.run(relay, control)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
