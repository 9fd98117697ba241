#!/usr/bin/env python3
"""Point queries and the ledger scan through the pool, from Python, each beside its rival.

    bench/pool_queries.py [--dir DIR] [--size GIB] [--rounds N] [--json FILE]

One file of 64-byte records (id, account, amount, 40 bytes of text) on the disk of DIR (/var/tmp).

queries   the amount of a record by its ordinal, random, the file in the pool; or in the page cache
          for os.pread + struct. All take the same ordinals, in turn, round by round.
scan      the sum of the amounts. Hot: all of it is in the pool, against a loop in C that sums all
          words of as much memory (membw.c, huge pages). Cold: a pool that has nothing, against
          reading the file with O_DIRECT by requests of 1 MiB, four at a time.

The figure of a cell is the median of the rounds, and so is the ratio: of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import zcfs
from zcfs.pool import PoolFile

RECORD = np.dtype([("id", "<i8"), ("account", "<i8"), ("amount", "<i8"), ("text", "S40")])
AMOUNT = 16  # its offset in a record
PAGE = 16384
PER_PAGE = PAGE // RECORD.itemsize
SCAN_PAGE = 65536
MIB = 1 << 20

Rounds = dict[str, list[float]]


def make_file(path: Path, size: int) -> None:
    """Records whose amounts are their ordinals."""
    chunk = 16 * MIB // RECORD.itemsize
    with path.open("wb") as out:
        for start in range(0, size // RECORD.itemsize, chunk):
            records = np.zeros(chunk, RECORD)
            records["id"] = records["amount"] = np.arange(start, start + chunk)
            out.write(records.tobytes())
        out.flush()
        os.fsync(out.fileno())
    drop_from_cache(path)


def drop_from_cache(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def rate(query: Callable[[], int], ordinals: Any) -> float:
    """Queries a second; amounts are ordinals, so what they add up to is known."""
    began = time.perf_counter()
    total = query()
    took = time.perf_counter() - began
    assert total == int(np.sum(ordinals))
    return len(ordinals) / took


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# --- queries --------------------------------------------------------------------------------------


def by_gather(file: PoolFile, ordinals: np.ndarray) -> int:
    pages, rows = np.divmod(ordinals, PER_PAGE)
    return int(file.gather(pages, rows * RECORD.itemsize + AMOUNT, "<i8").sum())


def by_page(file: PoolFile, ordinals: list[int]) -> int:
    borrow, unpack, total = file.page, struct.Struct("<q").unpack_from, 0
    for ordinal in ordinals:
        with borrow(ordinal // PER_PAGE) as page:
            total += unpack(page.data, ordinal % PER_PAGE * 64 + AMOUNT)[0]
    return total


def by_pread(fd: int, ordinals: list[int]) -> int:
    read, unpack, total = os.pread, struct.Struct("<q").unpack, 0
    for ordinal in ordinals:
        total += unpack(read(fd, 8, ordinal * 64 + AMOUNT))[0]
    return total


def queries(path: Path, size: int, rounds: int) -> Rounds:
    """Queries a second."""
    ordinals = np.random.default_rng(1).integers(0, size // RECORD.itemsize, 1_000_000)
    some = [int(ordinal) for ordinal in ordinals[:200_000]]
    found: Rounds = {"gather": [], "PageRef": [], "pread": []}
    fd = os.open(path, os.O_RDONLY)
    with zcfs.BufferPool(size + size // 8 + 64 * MIB) as pool, pool.open(path, PAGE) as file:
        for _ in file.pages(range(len(file))):
            pass
        while os.read(fd, MIB):
            pass
        for _ in range(rounds):
            found["gather"].append(rate(partial(by_gather, file, ordinals), ordinals))
            found["PageRef"].append(rate(partial(by_page, file, some), some))
            found["pread"].append(rate(partial(by_pread, fd, some), some))
        print(f"queries: {pool.io}, huge pages: {pool.statistics().huge_pages}", file=sys.stderr)
    os.close(fd)
    drop_from_cache(path)
    return found


# --- scan -----------------------------------------------------------------------------------------


def column_sum(file: PoolFile) -> int:
    total = 0
    for run in file.pages(range(len(file))).runs():
        total += int(run.array("<i8", AMOUNT, stride=64).sum())
    return total


def build_membw(directory: Path) -> Path:
    program = directory / "membw"
    source = Path(__file__).with_name("membw.c")
    subprocess.run(["cc", "-O3", "-march=native", "-o", program, source], check=True)
    return program


def membw(program: Path, size: int) -> float:
    done = subprocess.run([program, str(size), "3"], check=True, capture_output=True, text=True)
    return float(done.stdout)


def direct_read(path: Path, size: int) -> None:
    """The whole file with O_DIRECT: four threads, 1 MiB each."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def part(start: int) -> None:
        buffer = mmap.mmap(-1, MIB)
        for at in range(start, size, 4 * MIB):
            os.preadv(fd, [buffer], at)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(part, range(0, 4 * MIB, MIB)))
    os.close(fd)


def scan_hot(path: Path, size: int, rounds: int, program: Path) -> Rounds:
    """Bytes a second."""
    want = sum(range(size // RECORD.itemsize))
    found: Rounds = {"scan hot": [], "memory": []}
    with zcfs.BufferPool(size + size // 8 + 64 * MIB) as pool, pool.open(path, SCAN_PAGE) as file:
        assert column_sum(file) == want
        for _ in range(rounds):
            found["scan hot"].append(size / seconds(partial(column_sum, file)))
            found["memory"].append(size / membw(program, size))
        pieces = sum(1 for _ in file.pages(range(len(file))).runs())
        print(f"scan: {pieces} runs, huge pages: {pool.statistics().huge_pages}", file=sys.stderr)
    return found


def scan_cold(path: Path, size: int, rounds: int) -> Rounds:
    found: Rounds = {"scan cold": [], "O_DIRECT": []}
    for _ in range(rounds):
        with zcfs.BufferPool("256MiB") as pool, pool.open(path, SCAN_PAGE) as file:
            found["scan cold"].append(size / seconds(partial(column_sum, file)))
        found["O_DIRECT"].append(size / seconds(lambda: direct_read(path, size)))
    return found


# --- report ---------------------------------------------------------------------------------------

# what, against what, the least ratio; or the least figure
RATIOS = (
    ("gather", "pread", None),
    ("PageRef", "pread", None),
    ("scan hot", "memory", 0.8),
    ("scan cold", "O_DIRECT", 0.95),
)
LEAST = {"gather": 1e6, "PageRef": 3e5}


def report(found: Rounds) -> bool:
    """Print the figures and ratios; whether all that has to be reached was."""
    good = True
    for name, figures in found.items():
        middle, least = statistics.median(figures), LEAST.get(name)
        rate = f"{middle / 1e9:.2f} GB/s" if middle > 5e7 else f"{middle:,.0f}/s"
        good &= least is None or middle >= least
        print(f"{name:<10} {rate:>14}" + (f"   needed {least:,.0f}/s" if least else ""))
    for one, other, bar in RATIOS:
        if one not in found:
            continue
        ratios = [a / b for a, b in zip(found[one], found[other], strict=True)]
        middle = statistics.median(ratios)
        good &= bar is None or middle >= bar
        needed = f"   needed {bar}" if bar else ""
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        print(f"{one} / {other}: {middle:.2f} ({spread}){needed}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="point queries and the ledger scan by the pool")
    parser.add_argument("--dir", default="/var/tmp", help="on the disk to measure")
    parser.add_argument("--size", type=float, default=1, help="of the file, in GiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["queries", "hot", "cold"], help="one part")
    parser.add_argument("--json", type=Path, help="keep all rounds in this file")
    arguments = parser.parse_args()
    size, rounds = int(arguments.size * 1024) * MIB, arguments.rounds
    found: Rounds = {}
    with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
        path = Path(directory, "ledger")
        make_file(path, size)
        if arguments.only in (None, "queries"):
            found |= queries(path, size, rounds)
        if arguments.only in (None, "hot"):
            found |= scan_hot(path, size, rounds, build_membw(Path(directory)))
        if arguments.only in (None, "cold"):
            found |= scan_cold(path, size, rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    return 0 if report(found) else 1


if __name__ == "__main__":
    sys.exit(main())
