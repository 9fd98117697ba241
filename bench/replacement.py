#!/usr/bin/env python3
"""The pool's replacement policies over traces of real programs: hit rates.

    bench/replacement.py record DIR [NAME…]     # run the programs below strace: DIR/NAME.trace
    bench/replacement.py table DIR [--page 4096] [--json FILE]

A trace is what a program asked the kernel for: each 4 KiB block of each read and write, in order.
The programs have next to no cache of their own, so it is what a cache below them sees:

sqlite      an index and a table of 400,000 rows; lookups and updates of skewed keys, a report that
            reads everything now and then, and `tar` of the database at the end (sqlite3, tar)
postgres    pgbench: TPC-B, and skewed lookups, with a report that reads the accounts beside them
            (postgresql: initdb, postgres, pgbench)
rocksdb     gets of skewed keys, writes with compactions, scans of ranges (rocksdict)
duckdb      joins and aggregates over tables four times the memory it may use (duckdb)

Recording takes a few minutes and half a GiB; the traces are not kept in git.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import random
import re
import shutil
import subprocess
import sys
import tempfile
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

BLOCK = 4096
SHARES = ("1/100", "1/30", "1/10", "3/10")
DEFAULT = "s3fifo"  # the pool's
CALLS = "openat,lseek,read,pread64,preadv,write,pwrite64,pwritev"
CALL = re.compile(r"(\w+)\((\d+)<([^>]*)>.*?(?:, (-?\d+))?\) += (\d+)")
OPEN = re.compile(r"openat\(.*\) += \d+<([^>]*)>")


# --- from strace's output -------------------------------------------------------------------------


class Trace:
    """Blocks below a directory, in the order of the calls."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.words = array("Q")
        self.files: dict[str, int] = {}
        self.positions: dict[tuple[str, str], int] = defaultdict(int)

    def add_line(self, process: str, line: str) -> None:
        opened = OPEN.match(line)
        if opened:
            self.positions[process, opened[1]] = 0
            return
        call = CALL.match(line)
        if call and call[3].startswith(self.root):
            self.add_call(process, call[1], call[3], call[4], int(call[5]))

    def add_call(self, process: str, name: str, path: str, at: str | None, got: int) -> None:
        key = process, path
        if name == "lseek":
            self.positions[key] = got
        elif name in ("read", "write"):
            self.add(path, self.positions[key], got)
            self.positions[key] += got
        elif at is not None:
            self.add(path, int(at), got)

    def add(self, path: str, start: int, size: int) -> None:
        if size:
            file = self.files.setdefault(path, len(self.files) + 1) << 32
            blocks = range(start // BLOCK, (start + size - 1) // BLOCK + 1)
            self.words.extend(file | block for block in blocks)


def parse(text: Iterable[str], root: Path) -> array[int]:
    """The blocks of strace -f -y; a call that another thread interrupts is put together again."""
    trace, halves = Trace(root), {}
    for whole in text:
        process, _, line = whole.partition(" ")
        line = line.lstrip()
        if line.endswith("<unfinished ...>\n"):
            halves[process] = line[: -len("<unfinished ...>\n")]
            continue
        if line.startswith("<... "):
            line = halves.pop(process, "") + line.partition("resumed>")[2]
        trace.add_line(process, line)
    return trace.words


def strace(command: list[str], log: Path, **how: object) -> None:
    """Run a program, and add what it and its children read and write to `log`."""
    full = ["strace", "-f", "-y", "-qq", "-A", "-s", "0", "-e", f"trace={CALLS}", "-e",
            "signal=none", "-o", str(log), *command]  # fmt: skip
    subprocess.run(full, check=True, stdout=subprocess.DEVNULL, **how)  # type: ignore[call-overload]


# --- programs -------------------------------------------------------------------------------------


def skewed(rng: random.Random, count: int) -> int:
    """One of `count`, a few of them often: about Zipf's law, spread over all of the range."""
    rank = int(count ** rng.random())
    return rank * 2654435761 % count


def sqlite(work: Path, log: Path) -> None:
    rng, rows = random.Random(1), 400_000
    base = work / "sqlite.db"
    make = f"""PRAGMA page_size=4096; CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, text TEXT);
        WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {rows - 1})
        INSERT INTO t SELECT i, (i * 7919) % {rows}, printf('%.80c', 'x') FROM n;
        CREATE INDEX byk ON t(k);"""
    subprocess.run(["sqlite3", str(base)], input=make, text=True, check=True)
    lines = ["PRAGMA cache_size=8;", "PRAGMA synchronous=off;"]
    for turn in range(40_000):
        key = skewed(rng, rows)
        if turn % 10_000 == 9_999:
            lines.append("SELECT sum(length(text)) FROM t;")
        elif turn % 10 == 0:
            lines.append(f"UPDATE t SET text = printf('%.80c', 'y') WHERE id = {key};")
        elif turn % 2:
            lines.append(f"SELECT text FROM t WHERE id = {key};")
        else:
            lines.append(f"SELECT text FROM t WHERE k = {key};")
    strace(["sqlite3", str(base)], log, input="\n".join(lines), text=True)
    strace(["tar", "-cf", "-", "-C", str(work), base.name], log)


def postgres(work: Path, log: Path) -> None:
    """As the user postgres: it refuses root."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    bin_, user = found[-1].parent, pwd.getpwnam("postgres")
    how = {"user": user.pw_uid, "group": user.pw_gid, "cwd": work}
    os.chown(work, user.pw_uid, user.pw_gid)
    log.touch()
    os.chown(log, user.pw_uid, user.pw_gid)
    data = work / "pg"
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([bin_ / "initdb", "-D", data, "-A", "trust"], **how, **quiet)  # type: ignore[call-overload]
    options = [f"-k{work}", "-h", "", "-c", "shared_buffers=1MB", "-c", "fsync=off",
               "-c", "autovacuum=off", "-c", "max_parallel_workers=0"]  # fmt: skip
    to = ["-h", str(work), "postgres"]
    report = work / "report.sql"
    report.write_text("SELECT sum(abalance) FROM pgbench_accounts;\n")
    lookup = work / "lookup.sql"
    lookup.write_text("\\set aid random_zipfian(1, 500000, 1.1)\n"
                      "SELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n")  # fmt: skip

    def server(command: list[str], loads: list[list[str]]) -> None:
        running = subprocess.Popen([*command, str(bin_ / "postgres"), "-D", str(data), *options],
                                   stderr=subprocess.DEVNULL, **how)  # type: ignore[call-overload]  # fmt: skip
        try:
            ready = [str(bin_ / "pg_isready"), "-t", "30", "-h", str(work)]
            while subprocess.run(ready, stdout=subprocess.DEVNULL).returncode:
                if running.poll() is not None:
                    raise RuntimeError("postgres did not start")
            for load in loads:
                subprocess.run(load, **how, **quiet)  # type: ignore[call-overload]
        finally:
            pid = int((data / "postmaster.pid").read_text().split()[0])
            os.kill(pid, 2)
            running.wait(60)

    bench = str(bin_ / "pgbench")
    server([], [[bench, "-i", "-s", "5", *to]])
    traced = ["strace", "-f", "-y", "-qq", "-A", "-s", "0", "-e", f"trace={CALLS}", "-e",
              "signal=none", "-o", str(log)]  # fmt: skip
    mix = [f"-f{lookup}@400", "-btpcb-like@100", f"-f{report}@1"]
    server(traced, [[bench, "-n", "-c", "4", "-t", "2500", *mix, *to]])


ROCKSDB = """
import random, sys
from rocksdict import Rdict, Options, BlockBasedOptions, Cache, ReadOptions
def skewed(rng, count):
    return int(count ** rng.random()) * 2654435761 % count
options, table = Options(raw_mode=True), BlockBasedOptions()
options.create_if_missing(True)
options.set_write_buffer_size(4 << 20)
options.set_max_open_files(-1)
table.set_block_cache(Cache(65536))
table.set_block_size(4096)
options.set_block_based_table_factory(table)
rng, rows, base = random.Random(1), 600_000, Rdict(sys.argv[1], options)
if sys.argv[2] == "make":
    for i in range(rows):
        base[b"%08d" % (i * 7919 % rows)] = rng.randbytes(100)
else:
    for turn in range(60_000):
        key = b"%08d" % skewed(rng, rows)
        if turn % 5 == 0:
            base[key] = rng.randbytes(100)
        elif turn % 1000 == 1:
            for n, _ in enumerate(base.items(from_key=key)):
                if n == 2000:
                    break
        else:
            base.get(key)
base.close()
"""

DUCKDB = """
import sys, duckdb
base = duckdb.connect(sys.argv[1], config={"memory_limit": "40MB", "threads": 1})
if sys.argv[2] == "make":
    base.sql("CREATE TABLE sale AS SELECT i AS id, (random() * 50000)::INT AS client, "
             "random() AS amount, md5(i::VARCHAR) AS note FROM range(2000000) n(i)")
    base.sql("CREATE TABLE client AS SELECT i AS id, md5(i::VARCHAR) AS name "
             "FROM range(50000) n(i)")
else:
    for turn in range(12):
        base.sql("SELECT max(amount) FROM sale").fetchall()
        base.sql(f"SELECT c.name, sum(s.amount) FROM sale s JOIN client c ON s.client = c.id "
                 f"WHERE c.id < {200 * turn + 10} GROUP BY 1").fetchall()
        base.sql(f"SELECT count(*) FROM sale WHERE note LIKE 'a{turn}%'").fetchall()
        base.sql(f"SELECT * FROM sale WHERE id BETWEEN {turn * 999} AND {turn * 999 + 50000}"
                 ).fetchall()
base.close()
"""


def by_python(program: str, name: str) -> Callable[[Path, Path], None]:
    def run(work: Path, log: Path) -> None:
        command = [sys.executable, "-c", program, str(work / name)]
        subprocess.run([*command, "make"], check=True)
        strace([*command, "run"], log)

    return run


PROGRAMS: dict[str, Callable[[Path, Path], None]] = {
    "sqlite": sqlite,
    "postgres": postgres,
    "rocksdb": by_python(ROCKSDB, "rocks"),
    "duckdb": by_python(DUCKDB, "duck.db"),
}


def record(directory: Path, names: list[str]) -> None:
    """Each program once; one that is not installed is left out."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in names or PROGRAMS:
        with tempfile.TemporaryDirectory(prefix="zcfs-trace-", dir="/var/tmp") as made:
            work = Path(made).resolve()
            log = work / "strace.log"
            try:
                PROGRAMS[name](work, log)
            except (OSError, subprocess.CalledProcessError, KeyError, IndexError) as error:
                print(f"{name}: not recorded: {error}", file=sys.stderr)
                continue
            with log.open(errors="replace") as text:
                words = parse(text, work)
        with (directory / f"{name}.trace").open("wb") as out:
            words.tofile(out)
        print(f"{name}: {len(words):,} blocks", file=sys.stderr)


# --- simulation -----------------------------------------------------------------------------------


def build(directory: Path) -> Path:
    """The simulator: the policies of the pool, linked with a driver."""
    root = Path(__file__).resolve().parent.parent
    program = directory / "replacement"
    sources = [root / "bench/replacement.c", *sorted((root / "native/pool").glob("replace*.c"))]
    subprocess.run(["cc", "-O2", "-D_GNU_SOURCE", "-o", program, *sources, "-lm"], check=True)
    return program


def simulate(program: Path, trace: Path, page: int) -> list[dict[str, int | str]]:
    done = subprocess.run([program, trace, str(page), *SHARES], check=True, capture_output=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def print_table(found: dict[str, list[dict[str, int | str]]], page: int) -> None:
    """Markdown; the best of a row in bold. At the end the misses of each, beside the default's."""
    policies = list(dict.fromkeys(str(row["policy"]) for rows in found.values() for row in rows))
    print(f"| trace (pages of {page >> 10} KiB) | frames | " + " | ".join(policies) + " |")
    print("|---" * (2 + len(policies)) + "|")
    beside: dict[str, list[float]] = {policy: [] for policy in policies}
    for name, rows in found.items():
        sizes = dict.fromkeys(int(row["frames"]) for row in rows)
        for share, frames in zip(SHARES, sizes, strict=True):
            of = {str(row["policy"]): row for row in rows if row["frames"] == frames}
            rates = {p: int(of[p]["hits"]) / int(of[p]["accesses"]) for p in policies}
            best = max(rates.values())
            cells = [f"**{r:.3f}**" if r >= best - 5e-4 else f"{r:.3f}" for r in rates.values()]
            title = f"{name}: {int(rows[0]['accesses']):,} of {int(rows[0]['pages']):,} pages"
            print(f"| {title} | {frames:,} ({share}) | " + " | ".join(cells) + " |")
            for policy in policies:
                beside[policy].append((1 - rates[policy]) / (1 - rates[DEFAULT]))
    means = [f"{sum(beside[p]) / len(beside[p]):.3f}" for p in policies]
    print(f"| misses beside {DEFAULT}'s, mean | | " + " | ".join(means) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description="replacement policies over real traces")
    verbs = parser.add_subparsers(dest="verb", required=True)
    recorder = verbs.add_parser("record", help="run the programs and write their traces")
    recorder.add_argument("directory", type=Path)
    recorder.add_argument("names", nargs="*", choices=[*PROGRAMS, []], metavar="NAME")
    table = verbs.add_parser("table", help="print hit rates over all traces of a directory")
    table.add_argument("directory", type=Path)
    table.add_argument("--page", type=int, default=BLOCK, help="bytes, 4096 or more")
    table.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.verb == "record":
        if not shutil.which("strace"):
            print("strace is not installed", file=sys.stderr)
            return 2
        record(arguments.directory, arguments.names)
        return 0
    with tempfile.TemporaryDirectory() as made:
        program = build(Path(made))
        traces = sorted(arguments.directory.glob("*.trace"))
        found = {trace.stem: simulate(program, trace, arguments.page) for trace in traces}
    if not found:
        print(f"{arguments.directory}: no traces", file=sys.stderr)
        return 2
    print_table(found, arguments.page)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
