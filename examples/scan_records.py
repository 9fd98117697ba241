#!/usr/bin/env python3
"""The sum of one column of 64-byte records, over runs of borrowed pages: no record is copied.

    examples/scan_records.py [FILE]

The records: id, account, amount (all 8 bytes, little endian), 40 bytes of text. Without FILE it
makes one of 64 MiB.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import zcfs

RECORD = np.dtype([("id", "<i8"), ("account", "<i8"), ("amount", "<i8"), ("text", "S40")])
PAGE_SIZE = 65536  # a whole number of records


def make_file(path: Path, size: int) -> Path:
    records = np.zeros(size // RECORD.itemsize, RECORD)
    records["id"] = np.arange(len(records))
    records["amount"] = records["id"] % 1000
    records["text"] = b"a payment"
    path.write_bytes(records.tobytes())
    return path


def column_sum(file: zcfs.pool.PoolFile, column: str) -> int:
    """The sum of an integer column of RECORD over the whole file."""
    total = 0
    for run in file.pages(range(len(file))).runs():
        total += int(run.records(RECORD)[column].sum())
    return total


def show(path: Path) -> None:
    with zcfs.BufferPool("256MiB") as pool, pool.open(path, PAGE_SIZE) as file:
        for state in ("cold", "hot"):
            began = time.perf_counter()
            total = column_sum(file, "amount")
            seconds = time.perf_counter() - began
            print(f"{state}: {total}, {file.size / seconds / 2**20:,.0f} MiB/s")
        statistics = pool.statistics()
        print(f"{statistics.bytes_read} bytes from the disk, {statistics.bytes_copied} copied")


def main(arguments: list[str]) -> None:
    if arguments:
        show(Path(arguments[0]))
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        show(make_file(Path(directory, "records"), 64 << 20))


if __name__ == "__main__":
    main(sys.argv[1:])
