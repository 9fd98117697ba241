#!/usr/bin/env python3
"""Page leases: pages a second that another process gets from a mount's pool, beside pread.

    bench/leases.py [--dir DIR] [--size MIB] [--page-size BYTES] [--batch PAGES] [--seconds S]

leases.c does the work: random pages of a file that is in the pool, leased and released in batches,
and read by pread from the mount (pool engine, FOPEN_DIRECT_IO: each is a request to the daemon).
Five rounds of S seconds each, in turn; the figure is the median, and so is the ratio, of the
ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LEAST = 1_000_000  # pages a second, in batches of 64


def find_zcfsd() -> str:
    beside = Path(sys.executable).with_name("zcfsd")
    found = os.environ.get("ZCFS_ZCFSD") or (str(beside) if beside.exists() else None)
    found = found or shutil.which("zcfsd")
    if found is None:
        sys.exit("bench/leases.py: no zcfsd beside this Python or in PATH: name it by --zcfsd")
    return found


def build(directory: Path) -> Path:
    program = directory / "leases"
    sources = [HERE / "leases.c", *sorted((HERE.parent / "native/client").glob("*.c"))]
    flags = ["-O2", "-D_GNU_SOURCE", "-pthread"]
    subprocess.run(["cc", *flags, "-o", program, *sources], check=True)
    return program


@contextmanager
def mounted(zcfsd: str, base: Path, options: list[str]) -> Iterator[Path]:
    """A mount of an empty directory, until the block ends."""
    source, point = base / "source", base / "mnt"
    source.mkdir()
    point.mkdir()
    ready, ready_in = os.pipe()
    command = [zcfsd, "--foreground", "--engine", "pool", *options, "--ready-fd", str(ready_in)]
    daemon = subprocess.Popen([*command, source, point], pass_fds=[ready_in])
    os.close(ready_in)
    try:
        select.select([ready], [], [], 30)
        said = os.read(ready, 4096)
        if said != b"ready\n":
            sys.exit(f"bench/leases.py: {said.decode(errors='replace').strip()}")
        yield point
    finally:
        os.close(ready)
        daemon.terminate()
        daemon.wait()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
        base = Path(directory)
        program = build(base)
        pool = max(64, arguments.size * 3)
        options = ["--pool-size", f"{pool}M", "--transport", arguments.transport]
        options += ["--frame-size", str(arguments.page_size)]
        with mounted(arguments.zcfsd or find_zcfsd(), base, options) as point:
            words = [arguments.size, arguments.page_size, arguments.batch, arguments.seconds]
            done = subprocess.run(
                [program, point, "records", *map(str, words)], check=True, stdout=subprocess.PIPE
            )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def report(found: dict[str, Any]) -> bool:
    """Print the figures; whether what has to be reached was."""
    leases, pread = found["leases"], found["pread"]
    ratios = [a / b for a, b in zip(leases["rounds"], pread["rounds"], strict=True)]
    needed = LEAST if found["batch"] == 64 else None
    print(f"pages of {found['page_size']} bytes, batches of {found['batch']}")
    bar = f"   needed {needed:,}/s" if needed else ""
    print(f"leases     {leases['pages_s']:>12,.0f}/s{bar}")
    print(f"pread      {pread['pages_s']:>12,.0f}/s")
    spread = f"{min(ratios):.1f}–{max(ratios):.1f}"
    print(f"leases / pread: {statistics.median(ratios):.1f} ({spread})")
    return needed is None or leases["pages_s"] >= needed


def main() -> int:
    parser = argparse.ArgumentParser(description="page leases beside pread from the mount")
    parser.add_argument("--dir", default="/var/tmp", help="where the source and the mount are made")
    parser.add_argument("--size", type=int, default=64, help="of the file, in MiB")
    parser.add_argument("--page-size", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--transport", default="auto", choices=["auto", "dev", "uring"])
    parser.add_argument("--zcfsd", help="the daemon")
    parser.add_argument("--json", type=Path, help="keep all rounds in this file")
    arguments = parser.parse_args()
    found = measure(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    return 0 if report(found) else 1


if __name__ == "__main__":
    sys.exit(main())
