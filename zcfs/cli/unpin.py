"""Unpin files of a mount: give the memory back that `mountctl pin` or a --pin glob has taken.

PATH is below the mount: relative to its root, or absolute. A file that somebody reads pinned stays
so until its last close. One that a glob has pinned is not pinned again as long as the kernel
remembers it. --json: zcfs/schemas/pin.json."""

from __future__ import annotations

import argparse

from zcfs import control
from zcfs.cli.common import find_mount
from zcfs.cli.pin import add_arguments, below, show

HELP = "let go of files that are held in memory"


def configure(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    mount = find_mount(args.mountpoint)
    pins = control.query_paths(mount, "unpin", [below(mount, path) for path in args.paths])
    return show(mount, pins, args.json)
