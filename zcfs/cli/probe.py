"""Say what this machine grants, line by line with the reason.

PATH is the directory or file that would be mounted (default: the current directory).
--json: zcfs/schemas/probe.json."""

from __future__ import annotations

import argparse
import sys

from zcfs.cli.common import print_json
from zcfs.probe import Check, machine, probe

HELP = "say what this machine grants, and why not"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", nargs="?", default=".")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    checks = probe(args.path)
    if args.json:
        rows = [check.as_dict() for check in checks]
        print_json({"path": args.path, **machine(), "checks": rows})
    else:
        for check in checks:
            print(line(check))
    return 0


LABELS = {"dma_bounce": "dma not bounced"}


def line(check: Check) -> str:
    """One check for people: `✓ passthrough   2: granted by INIT`."""
    marks = {True: "✓", False: "✗", None: "?"}
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        marks = {True: "yes", False: "no ", None: "?  "}
    name = LABELS.get(check.name, check.name.replace("_", " "))
    value = f"{check.value}: " if check.value is not None else ""
    return f"{marks[check.granted]} {name:<17} {value}{check.reason}"
