"""What several verbs share: the options of a mount, finding one, printing."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from zcfs import control, mountinfo
from zcfs.errors import ZcfsError
from zcfs.mount import ENGINES, IO, LOCKS, SPLICE, TRANSPORTS, Options
from zcfs.mountinfo import Mount


def add_mount_options(parser: argparse.ArgumentParser) -> None:
    """The options of `mount` and `run`."""
    group = parser.add_argument_group("mount options")
    group.add_argument("--engine", choices=ENGINES, help="how file bytes are served")
    group.add_argument(
        "--policy", dest="policies", action="append", default=[], metavar="GLOB=ENGINE",
        help="how files are served whose path below the mount matches (kernel, pool, buffered, "
        "pinned); the first that matches counts, else --engine; '*' stops at '/', '**' does not: "
        "'**/*.ibd=pool'",
    )  # fmt: skip
    group.add_argument(
        "--pin", dest="pins", action="append", default=[], metavar="GLOB",
        help="pin such files at their first open: hold them in memory",
    )  # fmt: skip
    group.add_argument(
        "--pin-size", metavar="SIZE", help="memory of pinned files (a quarter of the machine's)"
    )
    group.add_argument("--pool-size", metavar="SIZE", help="memory of the pool engine (256M)")
    group.add_argument("--frame-size", metavar="SIZE", help="of its frames, 4K to 64K (16K)")
    group.add_argument("--io", choices=IO, help="how the pool reads the disk")
    group.add_argument("--transport", choices=TRANSPORTS, help="how requests reach the daemon")
    group.add_argument("--splice", choices=SPLICE, help="move data through pipes, not copy it")
    group.add_argument("--locks", choices=LOCKS, help="take locks on the source too, or locally")
    group.add_argument(
        "--read-only", action="store_true", help="write nothing to the source, not even atimes"
    )
    group.add_argument("--allow-other", action="store_true", help="let other users in")
    group.add_argument(
        "--foreground", action="store_true", help="keep the daemon in the foreground, its log here"
    )
    group.add_argument("--log", metavar="FILE", help="where the daemon writes its log")
    group.add_argument(
        "--threads", type=positive, metavar="N",
        help="data-plane threads a queue at the start (default 3)",
    )  # fmt: skip
    group.add_argument(
        "-o", dest="mount_options", action="append", default=[], metavar="OPT[,OPT]",
        help="mount options: nonempty, fsname=X, subtype=X, attr_timeout=S, entry_timeout=S, "
        "what is above (ro, engine=kernel …), and mount(8)'s own (nosuid, noexec, noatime …)",
    )  # fmt: skip


def positive(text: str) -> int:
    """A number from 1 up, for argparse."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, and at least 1")
    return value


def positive_seconds(text: str) -> float:
    """A time above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be seconds, and more than 0")
    return value


def mount_options(args: argparse.Namespace) -> Options:
    """What add_mount_options() has read."""
    return Options(
        engine=args.engine,
        transport=args.transport,
        pool_size=args.pool_size,
        frame_size=args.frame_size,
        io=args.io,
        splice=args.splice,
        policies=tuple(args.policies),
        pins=tuple(args.pins),
        pin_size=args.pin_size,
        locks=args.locks,
        read_only=args.read_only,
        allow_other=args.allow_other,
        threads=args.threads,
        log=os.path.abspath(args.log) if args.log else None,  # the daemon works in /
        mount_options=tuple(o for group in args.mount_options for o in group.split(",") if o),
    )


def find_mount(path: str) -> Mount:
    """The mount of zcfs on `path`. ZcfsError when there is none."""
    mount = mountinfo.at(mountinfo.locate(path))
    if mount is None or not control.is_ours(mount):
        raise ZcfsError(f"{path}: no zcfs is mounted there; mountctl list shows where")
    return mount


def warn(message: str) -> None:
    """One line for the user beside the result."""
    print(f"mountctl: {message}", file=sys.stderr)


def print_json(document: object) -> None:
    """A result for programs: the keys are those of zcfs/schemas/."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Plain columns, as wide as their longest cell."""
    lines = [tuple(columns), *map(tuple, rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def size(value: int) -> str:
    """Bytes for people: 512 B, 4.0 KiB, 1.5 GiB."""
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def seconds(value: Any) -> str:
    """A time span for people: 3 d 4 h, 5 min 2 s, 0.3 s."""
    total = float(value)
    if total < 60:
        return f"{total:.1f} s"
    minutes, rest = divmod(int(total), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def number(value: float, unit: str = "") -> str:
    """A number with three digits and a decimal prefix: 12.3 k, 1.05 G."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or prefix == "T":
            digits = f"{value:.3g}" if prefix or value != int(value) else f"{int(value)}"
            return f"{digits} {prefix}{unit}".strip()
        value /= 1000
    raise AssertionError
