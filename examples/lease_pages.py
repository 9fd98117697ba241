#!/usr/bin/env python3
"""Two processes add up one column of a table; neither reads a byte of the file.

    examples/lease_pages.py

It makes a file of records, mounts its directory with a pool, and starts two workers. Each leases
half of the pages from the daemon and adds up where the disk's DMA has put them: zcfs.attach.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import zcfs

PAGE_SIZE = 16384
RECORD = struct.Struct("<q8xq40x")  # id, amount, and some text: 64 bytes
PAGES = 64


def make_file(path: Path) -> int:
    """Records whose amounts are three times their number; returns what the amounts add up to."""
    count = PAGES * PAGE_SIZE // RECORD.size
    path.write_bytes(b"".join(RECORD.pack(n, 3 * n) for n in range(count)))
    return 3 * sum(range(count))


def add_up(mountpoint: str, pages: range) -> int:
    """The amounts in these pages, from views into the daemon's frames."""
    total = 0
    with zcfs.attach(mountpoint) as client, client.open("ledger", PAGE_SIZE) as file:
        for page in file.pages(pages):
            total += sum(amount for _, amount in RECORD.iter_unpack(page.data))
    return total


def worker(first: str, end: str) -> None:
    print(add_up(os.environ["ZCFS_MNT"], range(int(first), int(end))))


def run_workers() -> None:
    """On the mount: two at once."""
    halves = [("0", str(PAGES // 2)), (str(PAGES // 2), str(PAGES))]
    workers = [
        subprocess.Popen([sys.executable, __file__, *half], stdout=subprocess.PIPE, text=True)
        for half in halves
    ]
    totals = [int(each.communicate()[0]) for each in workers]
    print(" + ".join(str(total) for total in totals), "=", sum(totals))


def main() -> None:
    with tempfile.TemporaryDirectory() as source:
        total = make_file(Path(source, "ledger"))
        print("expected:", total, flush=True)
        command = [sys.executable, "-P", "-m", "zcfs.cli", "run", "--engine", "pool", source]
        subprocess.run([*command, "--", sys.executable, __file__, "workers"], check=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        worker(*sys.argv[1:])
    elif sys.argv[1:] == ["workers"]:
        run_workers()
    else:
        main()
