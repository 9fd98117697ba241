#!/usr/bin/env python3
"""Point reads while another process scans: through the pool, and through the page cache.

    bench/pool_tail.py [--dir DIR] [--memory MIB] [--seconds S] [--rounds N] [--rate N]
                       [--json FILE]

In each round, for the pool and for the page cache in turn: a memory cgroup with a limit of --memory
(256 MiB), in it a reader and a scanner. The reader reads one 8-byte field of a random record of a
file of half that size, which it has read once before, and takes the time of each read: through
PageRef, with a pool of three fifths of the limit, or by os.pread. Meanwhile the scanner reads a
file of ten times the limit, over and over, by read(2) of 1 MiB, through the page cache in both
cases. Two readers: "steady" reads --rate (2,000) times a second, as a service does that is not at
its limit; "flat out" reads on at once.

Both files are on the disk of DIR (/var/tmp). Needs root, and a cgroup (v1 or v2) for memory. The
figures of a round are the reader's 99th percentile and its reads a second; the ratios are taken
within a round. Exit status 1: the pool is not 3 times better (p99, steady) or not twice as fast
(throughput, flat out).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

MIB = 1 << 20
PAGE = 16384
RECORD = 64
BARS = {"steady": ("p99", 3.0), "flat out": ("rate", 2.0)}


# --- in the cgroup --------------------------------------------------------------------------------


def scan(path: str) -> None:
    """Until it is killed."""
    fd = os.open(path, os.O_RDONLY)
    buffer = bytearray(MIB)
    while True:
        if not os.readv(fd, [buffer]):
            os.lseek(fd, 0, os.SEEK_SET)


class Times:
    """How often each time was seen, to 6 %: what it takes of the cgroup's memory does not grow."""

    def __init__(self) -> None:
        self.counts = [0] * (64 * 32)

    def add(self, ns: int) -> None:
        shift = max(0, ns.bit_length() - 5)
        self.counts[shift * 32 + (ns >> shift)] += 1

    def quantile(self, share: float) -> float:
        """In µs."""
        left = sum(self.counts) * share
        for index, count in enumerate(self.counts):
            left -= count
            if left < 0:
                shift = index // 32
                return ((index % 32) << shift) / 1e3
        return 0.0


def timed(read: Callable[[int], None], count: int, seconds: float, rate: float) -> dict[str, float]:
    """p50, p99, p999 in µs, and reads a second."""
    rng, clock, times, reads = random.Random(os.getpid()), time.perf_counter_ns, Times(), 0
    began = due = clock()
    end = began + int(seconds * 1e9)
    while (now := clock()) < end:
        if rate:
            due += int(1e9 / rate)
            if now < due:
                time.sleep((due - now) / 1e9)
        ordinal = rng.randrange(count)
        start = clock()
        read(ordinal)
        times.add(clock() - start)
        reads += 1
    took = (clock() - began) / 1e9
    return {"p50": times.quantile(0.5), "p99": times.quantile(0.99), "p999": times.quantile(0.999),
            "rate": reads / took, "reads": reads}  # fmt: skip


def read_by_pread(path: str, seconds: float, rate: float) -> dict[str, float]:
    fd, size = os.open(path, os.O_RDONLY), os.stat(path).st_size
    pread, unpack = os.pread, struct.Struct("<q").unpack
    while os.read(fd, MIB):
        pass

    def read(ordinal: int) -> None:
        assert unpack(pread(fd, 8, ordinal * RECORD))[0] == ordinal

    ready()
    return timed(read, size // RECORD, seconds, rate)


def read_by_pool(path: str, seconds: float, rate: float, pool_size: int) -> dict[str, float]:
    import zcfs

    unpack, per_page = struct.Struct("<q").unpack_from, PAGE // RECORD
    with zcfs.BufferPool(pool_size) as pool, pool.open(path, PAGE) as file:
        for _ in file.pages(range(len(file))):
            pass

        def read(ordinal: int) -> None:
            with file.page(ordinal // per_page) as page:
                assert unpack(page.data, ordinal % per_page * RECORD)[0] == ordinal

        ready()
        figures = timed(read, file.size // RECORD, seconds, rate)
        reread = pool.statistics().bytes_read - file.size
        return {**figures, "reread MiB": reread / MIB}


def ready() -> None:
    """The file has been read; wait for the scanner."""
    print("ready", flush=True)
    sys.stdin.readline()


# --- outside --------------------------------------------------------------------------------------


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A cgroup with this limit; yields the file that takes processes."""
    root = next((Path(p) for p in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
                 if "memory" in text(Path(p) / "cgroup.controllers").split()), None)  # fmt: skip
    at = (root or Path("/sys/fs/cgroup/memory")) / f"zcfs-bench-{os.getpid()}"
    if root:
        (root / "cgroup.subtree_control").write_text("+memory")
    at.mkdir()
    try:
        (at / ("memory.max" if root else "memory.limit_in_bytes")).write_text(str(limit))
        yield at / "cgroup.procs"
    finally:
        at.rmdir()


def text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@contextmanager
def inside(procs: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """This program as a child in the cgroup, killed at the end."""
    command = ["sh", "-c", f'echo $$ >"{procs}" && exec "$@"', "sh", sys.executable, "-P", __file__]
    child = subprocess.Popen([*command, *map(str, arguments)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def one_round(
    how: str, files: dict[str, Path], memory: int, seconds: float, rate: float
) -> dict[str, float]:
    for path in files.values():
        drop_from_cache(path)
    with ExitStack() as stack:
        procs = stack.enter_context(memory_cgroup(memory))
        reader = stack.enter_context(inside(procs, "--read", how, files["points"], seconds, rate,
                                            memory * 3 // 5))  # fmt: skip
        assert reader.stdin is not None
        assert reader.stdout is not None
        if reader.stdout.readline() != "ready\n":
            raise RuntimeError(f"the reader ({how}) did not start")
        stack.enter_context(inside(procs, "--scan", files["scan"]))
        time.sleep(1.0)
        reader.stdin.write("go\n")
        reader.stdin.flush()
        line = reader.stdout.readline()
        if not line:
            raise RuntimeError(f"the reader ({how}) ended early: {reader.wait()}")
    figures: dict[str, float] = json.loads(line)
    return figures


def make_file(path: Path, size: int) -> None:
    """Words that say which record they are in; far cheaper to make than random ones."""
    with path.open("wb") as out:
        for start in range(0, size // RECORD, MIB // RECORD):
            block = array("q", bytes(MIB))
            block[:: RECORD // 8] = array("q", range(start, start + MIB // RECORD))
            out.write(block.tobytes())
        out.flush()
        os.fsync(out.fileno())
    drop_from_cache(path)


def drop_from_cache(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


Found = dict[str, dict[str, list[dict[str, float]]]]


def measure(directory: Path, memory: int, seconds: float, rounds: int, rate: float) -> Found:
    files = {"points": directory / "points", "scan": directory / "scan"}
    make_file(files["points"], memory // 2)
    make_file(files["scan"], memory * 10)
    found: Found = {}
    for kind, pace in (("steady", rate), ("flat out", 0.0)):
        of: dict[str, list[dict[str, float]]] = {"pool": [], "pread": []}
        for turn in range(rounds):
            for how in list(of) if turn % 2 == 0 else reversed(list(of)):
                of[how].append(one_round(how, files, memory, seconds, pace))
                print(kind, how, of[how][-1], file=sys.stderr)
        found[kind] = of
    return found


def report(found: Found) -> bool:
    """The table; whether all that has to be reached was."""
    good = True
    for kind, of in found.items():
        for how, rounds in of.items():
            middle = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
            print(f"{kind:<9} {how:<6} p50 {middle['p50']:9.1f} µs  p99 {middle['p99']:9.1f} µs  "
                  f"p99.9 {middle['p999']:9.1f} µs  {middle['rate']:10,.0f}/s")  # fmt: skip
        pairs = list(zip(of["pool"], of["pread"], strict=True))
        for what, ratios in (("p99", [b["p99"] / a["p99"] for a, b in pairs]),
                             ("rate", [a["rate"] / b["rate"] for a, b in pairs])):  # fmt: skip
            middle_ratio = statistics.median(ratios)
            named, bar = BARS[kind]
            needed = f"   needed {bar:g}" if named == what else ""
            good &= named != what or middle_ratio >= bar
            spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
            print(f"{kind:<9} {what}: pool / pread {middle_ratio:.2f} ({spread}){needed}")
    return good


def child(words: list[str]) -> None:
    if words[0] == "--scan":
        scan(words[1])
    _, how, path, seconds, rate, pool_size = words
    arguments = path, float(seconds), float(rate)
    figures = read_by_pool(*arguments, int(pool_size)) if how == "pool" else (
        read_by_pread(*arguments))  # fmt: skip
    print(json.dumps(figures), flush=True)


def main() -> int:
    if sys.argv[1:2] in (["--scan"], ["--read"]):
        child(sys.argv[1:])
        return 0
    parser = argparse.ArgumentParser(description="point reads beside a scan, in one memory cgroup")
    parser.add_argument("--dir", default="/var/tmp", help="on the disk to measure")
    parser.add_argument("--memory", type=int, default=256, help="limit of the cgroup, in MiB")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=2000.0, help="reads a second, steady")
    parser.add_argument("--json", type=Path, help="keep all rounds in this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="zcfs-bench-") as made:
        found = measure(Path(made), arguments.memory * MIB, arguments.seconds, arguments.rounds,
                        arguments.rate)  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    return 0 if report(found) else 1


if __name__ == "__main__":
    sys.exit(main())
