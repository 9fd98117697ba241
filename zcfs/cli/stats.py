"""Show what a mount has done: requests by kind, errors, mean time, bytes.

Bytes that the kernel served itself (kernel engine) are not counted here: no request reaches the
daemon for them. --json: zcfs/schemas/stats.json."""

from __future__ import annotations

import argparse
from typing import Any

from zcfs import control
from zcfs.cli.common import find_mount, number, print_json, print_table, seconds

HELP = "show the requests a mount has served"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    stats = control.query(find_mount(args.mountpoint), "stats")
    if args.json:
        print_json(stats)
    else:
        show(stats)
    return 0


def show(stats: dict[str, Any]) -> None:
    """The statistics for people."""
    requests = stats.get("requests", {})
    rows = [row(name, seen) for name, seen in sorted(requests.items(), key=by_count)]
    if rows:
        print_table(("REQUEST", "COUNT", "ERRORS", "MEAN"), rows)
        print()
    print(f"up            {seconds(stats.get('uptime_s', 0))}")
    print(f"read          {number(stats.get('bytes_read', 0), 'B')} by the daemon")
    print(f"written       {number(stats.get('bytes_written', 0), 'B')} by the daemon")
    print(f"inodes        {stats.get('inodes')} ({stats.get('descriptors')} descriptors)")
    relay = stats.get("relay", {})
    print(f"computed tree {relay.get('requests', 0)} requests, {relay.get('restarts', 0)} restarts")


def by_count(item: tuple[str, dict[str, int]]) -> tuple[int, str]:
    return -item[1]["count"], item[0]


def row(name: str, seen: dict[str, int]) -> list[str]:
    mean = seen["ns"] / seen["count"] / 1000 if seen["count"] else 0.0
    return [name, str(seen["count"]), str(seen["errors"]), f"{mean:.1f} µs"]
