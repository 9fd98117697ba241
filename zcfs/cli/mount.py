"""Mount the directory SOURCE on the directory MOUNTPOINT, and return when the mount answers."""

from __future__ import annotations

import argparse
import sys

from zcfs import control
from zcfs.cli.common import add_mount_options, mount_options, warn
from zcfs.errors import ZcfsError
from zcfs.mount import start, start_foreground, wait_foreground
from zcfs.mountinfo import Mount

HELP = "mount a directory on another"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    add_mount_options(parser)


def run(args: argparse.Namespace) -> int:
    options = mount_options(args)
    if args.foreground:
        mount, process = start_foreground(args.source, args.mountpoint, options)
        return wait_foreground(process, lambda: announce(mount))
    announce(start(args.source, args.mountpoint, options, warn))
    return 0


def announce(mount: Mount) -> None:
    """Say what is mounted how, and where .zcfs is, since no listing shows it."""
    how = ""
    try:
        status = control.query(mount, "status")
        how = f" ({status.get('engine')} engine, {status.get('transport')} transport)"
    except ZcfsError as exc:
        warn(str(exc))
    print(f"{mount.source} is mounted on {mount.mountpoint}{how}")
    print(f"its status and statistics: {mount.mountpoint}/.zcfs/ (not listed by ls)")
    sys.stdout.flush()
