"""Pin files of a mount: hold each in memory as a whole, to be read from there.

PATH is below the mount: relative to its root, or absolute. Loading goes on in the background
(mountctl status shows how far it is); until it is done, and for whoever has the file open already,
the file is served as without the pin. While somebody reads a pinned file, opening it for writing
fails with ETXTBSY; otherwise writers get the file itself, and it is loaded again after their last
close.
A pin lasts until `mountctl unpin`, the end of the file or of the mount.

--json: zcfs/schemas/pin.json."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import Any

from zcfs import control
from zcfs.cli.common import find_mount, print_json, warn
from zcfs.cli.status import described
from zcfs.errors import UsageError
from zcfs.mountinfo import Mount

HELP = "hold files of a mount in memory"
POLL = 0.05  #: seconds between two looks at what is loading


def configure(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument(
        "--wait", action="store_true", help="until what can be loaded is (not what is written to)"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `pin` and `unpin`."""
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument("paths", metavar="PATH", nargs="+")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    mount = find_mount(args.mountpoint)
    paths = [below(mount, path) for path in args.paths]
    pins = control.query_paths(mount, "pin", paths)
    while args.wait and any(pin["state"] == "loading" for pin in pins):
        time.sleep(POLL)
        pins = control.query_paths(mount, "pin", paths)
    return show(mount, pins, args.json)


def below(mount: Mount, path: str) -> str:
    """`path` relative to the mount's root. UsageError when it is not below it."""
    plain = os.path.normpath(path)
    if os.path.isabs(plain):
        plain = os.path.relpath(plain, mount.mountpoint)
    if plain == ".." or plain.startswith("../"):
        raise UsageError(f"{path}: not below {mount.mountpoint}")
    return plain


def show(mount: Mount, pins: Sequence[dict[str, Any]], as_json: bool) -> int:
    """Print what came of it. Returns the exit status: 1 if something was refused."""
    refused = [pin for pin in pins if pin["state"] == "refused"]
    if as_json:
        print_json(pins)
        return 1 if refused else 0
    for pin in pins:
        if pin in refused:
            warn(f"{mount.mountpoint}: {pin['path']}: {pin['reason']}")
        else:
            print(described(pin))
    return 1 if refused else 0
