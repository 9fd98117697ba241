"""Mount SOURCE on a temporary directory, run a command, unmount.

The command finds the mount in the environment variable ZCFS_MNT. The exit status is the command's
own; 128+N when signal N has ended it, 126 or 127 when it could not be started."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from zcfs.cli.common import add_mount_options, mount_options, warn
from zcfs.errors import UsageError
from zcfs.mount import mounted

HELP = "mount, run a command with ZCFS_MNT set, unmount"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mountctl run [mount options] SOURCE -- COMMAND [ARG …]"
    parser.add_argument("source", metavar="SOURCE")
    add_mount_options(parser)


def run(args: argparse.Namespace) -> int:
    if not args.command:
        raise UsageError("run: give the command after --, as in: mountctl run SOURCE -- ls")
    options = mount_options(args)
    point = tempfile.mkdtemp(prefix="zcfs-run-")
    try:
        with mounted(args.source, point, options, warn, foreground=args.foreground):
            return run_command(args.command, {**os.environ, "ZCFS_MNT": point})
    finally:
        Path(point).rmdir()


def run_command(command: Sequence[str], env: dict[str, str]) -> int:
    """Run it as a shell would: the terminal's signals are for it, its status is ours."""
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # what came before there was a child

    def pass_on(number: int, frame: FrameType | None) -> None:
        if child is None:
            early.append(number)
        elif number != signal.SIGINT:  # ^C has reached it already
            child.send_signal(number)

    # Handlers, not SIG_IGN: a program that is executed starts with the default actions again.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        child = subprocess.Popen(command, env=env)
        for number in early:
            child.send_signal(number)
        status = child.wait()
    except OSError as exc:
        warn(f"{command[0]}: {exc.strerror}")
        return 127 if isinstance(exc, FileNotFoundError) else 126
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status
