"""Show what a mount has done: requests by kind, errors, mean time, bytes, and how they were moved.

Bytes that the kernel served itself (kernel engine) are not counted here: no request reaches the
daemon for them. --json: zcfs/schemas/stats.json."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from zcfs import control
from zcfs.cli.common import find_mount, number, print_json, print_table, seconds

HELP = "show what a mount has served, and what was copied"


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
    moved = [path_row(*path) for path in paths(stats.get("ledger", {}))]
    if moved:
        print_table(("PATH", "BYTES", "COPIED", "MOVED", "SYSCALLS", "COPIES/BYTE"), moved)
        print()
    print(f"up            {seconds(stats.get('uptime_s', 0))}")
    print(f"read          {number(stats.get('bytes_read', 0), 'B')} by the daemon")
    print(f"written       {number(stats.get('bytes_written', 0), 'B')} by the daemon")
    if pool := stats.get("pool"):
        print(pool_line(pool))
    print(f"inodes        {stats.get('inodes')} ({stats.get('descriptors')} descriptors)")
    relay = stats.get("relay", {})
    print(f"computed tree {relay.get('requests', 0)} requests, {relay.get('restarts', 0)} restarts")


def paths(ledger: dict[str, dict[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each engine's reads and writes that have come."""
    for engine, directions in ledger.items():
        for direction, seen in directions.items():
            if seen.get("requests") or seen.get("bytes_passthrough"):
                yield f"{engine} {direction}", seen


def path_row(name: str, seen: dict[str, Any]) -> list[str]:
    copied = seen["bytes_copied_user"] + seen["bytes_copied_kernel"]
    copies = seen.get("copies_per_byte")
    sizes = (seen["bytes_delivered"], copied, seen["bytes_moved"])
    figures = [number(count, "B") for count in sizes]
    return [name, *figures, str(seen["syscalls"]), "-" if copies is None else f"{copies:.2f}"]


def pool_line(pool: dict[str, int]) -> str:
    asked = pool["hits"] + pool["misses"]
    share = f" ({100 * pool['hits'] / asked:.1f} %)" if asked else ""
    return (
        f"pool          {pool['hits']} hits{share}, {pool['misses']} misses, "
        f"{pool['readahead']} read ahead, {pool['evictions']} evicted"
    )


def by_count(item: tuple[str, dict[str, int]]) -> tuple[int, str]:
    return -item[1]["count"], item[0]


def row(name: str, seen: dict[str, int]) -> list[str]:
    mean = seen["ns"] / seen["count"] / 1000 if seen["count"] else 0.0
    return [name, str(seen["count"]), str(seen["errors"]), f"{mean:.1f} µs"]
