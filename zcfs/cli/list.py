"""List the mounts of zcfs on this machine, those of dead daemons included.

--json: zcfs/schemas/list.json."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from zcfs import control
from zcfs.cli.common import print_json, print_table
from zcfs.errors import DaemonError
from zcfs.mountinfo import Mount

HELP = "list the mounts"
TIMEOUT = 2.0
ASKED = ("pid", "engine", "transport", "read_only", "uptime_s")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    with ThreadPoolExecutor(max_workers=16) as pool:  # one that hangs delays no other
        rows = list(pool.map(describe, control.mounts()))
    if args.json:
        print_json({"mounts": rows})
    elif rows:
        columns = ("mountpoint", "source", "state", "engine", "transport", "pid")
        cells = [["-" if row[c] is None else str(row[c]) for c in columns] for row in rows]
        print_table([column.upper() for column in columns], cells)
    return 0


def describe(mount: Mount) -> dict[str, Any]:
    """One mount, with what its daemon says as far as it speaks."""
    row: dict[str, Any] = {
        "mountpoint": mount.mountpoint,
        "source": mount.source,
        "device": mount.device,
        "state": "serving",
    }
    status: dict[str, Any] = {}
    try:
        status = control.query(mount, "status", timeout=TIMEOUT)
    except DaemonError as exc:
        row["state"] = state(str(exc))
    return row | {key: status.get(key) for key in ASKED}


def state(message: str) -> str:
    """'dead', 'hung', or 'unknown' for somebody else's mount."""
    if control.DEAD in message:
        return "dead"
    return "hung" if control.HUNG in message else "unknown"
