"""Show how a mount is served: engine, policies, pins, transport, open files, and what was degraded.

--json: zcfs/schemas/status.json."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from zcfs import control
from zcfs.cli.common import find_mount, print_json, seconds, size

HELP = "show how a mount is served, and what was degraded"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    status = control.query(find_mount(args.mountpoint), "status")
    if args.json:
        print_json(status)
    else:
        for name, value in lines(status):
            print(f"{name:<14} {value}")
    return 0


def lines(status: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The status for people, as (name, value)."""
    access = "read-only" if status.get("read_only") else "read-write"
    access += ", other users allowed" if status.get("allow_other") else ""
    yield "source", f"{status.get('source')}"
    yield "mount point", f"{status.get('mountpoint')} ({access}; device {status.get('device')})"
    daemon = f"zcfsd {status.get('version')}, pid {status.get('pid')}"
    yield (
        "daemon",
        f"{daemon}, up {seconds(status.get('uptime_s', 0))}, FUSE {status.get('protocol')}",
    )
    yield "engine", str(status.get("engine"))
    for name, engine in status.get("engines", {}).items():
        yield f"  {name}", f"{engine.get('open_files', 0)} open files"
    yield from policies(status)
    yield from pins(status.get("pins", {}))
    yield "transport", f"{status.get('transport')}, {status.get('threads')} threads"
    yield "splice", str(status.get("splice"))
    yield "locks", str(status.get("locks"))
    plane = status.get("control_plane", {})
    yield "control plane", f"{plane.get('state')}, restarted {plane.get('restarts', 0)} times"
    yield "inodes", f"{status.get('inodes')} ({status.get('descriptors')} descriptors)"
    if leases := status.get("leases"):
        yield "leases", f"{leases['leases']} pages, {leases['clients']} clients, {leases['socket']}"
    yield from features(status.get("features", {}))
    for item in status.get("degradations", ()):
        yield "degraded", f"{item.get('what')}: {item.get('reason')}"


def policies(status: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Which engine serves which files."""
    for policy in status.get("policies", ()):
        yield "  policy", f"{policy.get('glob')}: {policy.get('engine')}"
    for glob in status.get("pins", {}).get("globs", ()):
        yield "  policy", f"{glob}: pinned at the first open"


def pins(pinned: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is pinned, one file a line."""
    listed = pinned.get("list", [])
    if not listed:
        return
    files, used, limit = pinned["files"], size(pinned["used"]), size(pinned["limit"])
    yield "pins", f"{files} files, {used} of {limit}"
    for pin in listed:
        yield "  pin", described(pin)
    if files > len(listed):
        yield "  pin", f"and {files - len(listed)} more"


def described(pin: dict[str, Any]) -> str:
    """One pin for people."""
    state = str(pin["state"])
    if state == "loading" and pin["size"]:
        state += f" ({100 * pin['loaded'] // pin['size']} %)"
    reason = f": {pin['reason']}" if pin["reason"] else ""
    return f"{pin['path']}  {size(pin['size'])}  {state}{reason}"


def features(granted: dict[str, bool]) -> Iterator[tuple[str, str]]:
    """Which features the kernel has granted, and which not."""
    for name, wanted in (("features", True), ("not granted", False)):
        names = [feature for feature, has in granted.items() if has is wanted]
        if names:
            yield name, " ".join(names)
