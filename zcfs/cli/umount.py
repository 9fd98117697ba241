"""Unmount. Waits for processes with open files, then says who holds the mount.

Also cleans up after a daemon that has died. Returns when the daemon has ended."""

from __future__ import annotations

import argparse

from zcfs.cli.common import find_mount, warn
from zcfs.errors import ZcfsError
from zcfs.mount import UMOUNT_WAIT, unmount

HELP = "unmount, or say who holds the mount"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="+")
    parser.add_argument(
        "--wait", type=float, default=UMOUNT_WAIT, metavar="SECONDS",
        help="how long to wait for open files (default %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--lazy", action="store_true", help="take it out of sight now; it ends with its last file"
    )
    parser.add_argument(
        "--force", action="store_true", help="abort a daemon that hangs; unwritten data is lost"
    )


def run(args: argparse.Namespace) -> int:
    status = 0
    for path in args.mountpoint:
        try:
            mount = find_mount(path)
            unmount(mount, wait=args.wait, lazy=args.lazy, force=args.force, notice=warn)
        except ZcfsError as exc:  # the others are unmounted all the same
            warn(str(exc))
            status = exc.status
    return status
