"""The pool: hits and misses through the mount, the pinned file, and pages borrowed without a mount.

Through the mount fio drives; what goes without one is measured by programs of their own, which can
also be run alone (pool_hits.c, pool_queries.py, pool_tail.py), and comes into the same tables.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import host
from bench.cells import (
    BARE,
    Bar,
    Cell,
    Limit,
    Settings,
    Store,
    keep,
    measure_on,
    mount_all,
    report_progress,
    say,
)
from bench.cells_fio import FILE_MIB, QUICK_MIB, run_cell
from bench.host import BenchError
from bench.subjects import Mount, Subject
from zcfs import fio

HIT = "pool hit"
MISS = "pool miss"
SMALL = "pool miss/4K"  # frames as large as the reads
PINNED = "pinned"
LL = "passthrough_ll-nocache"
BINDFS, BINDFS_DIRECT = "bindfs", "bindfs-direct"
OWN_PEERS = (LL, BINDFS_DIRECT)  # of no other set
MEMCPY = "memcpy"
HERE = Path(__file__).parent


def pool_options(quick: bool) -> dict[str, list[str]]:
    """What zcfsd is told beside the engine, by subject: all of the file fits, or a sixteenth."""
    mib = QUICK_MIB if quick else FILE_MIB
    small = f"--pool-size={mib // 16}M"
    return {HIT: [f"--pool-size={mib * 2}M"], MISS: [small], SMALL: [small, "--frame-size=4K"],
            PINNED: ["--pin=**"]}  # fmt: skip


# --- through the mount ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A cell of fio: who is measured, and what has to be reached."""

    key: str
    cell: fio.Cell
    names: tuple[str, ...]
    bars: Mapping[str, tuple[Bar, ...]]  # by store


BY_NAME = {cell.name: cell for cell in fio.CELLS}


def warm(name: str, title: str, **options: str | int) -> fio.Cell:
    """One of zcfs.fio's cells, its file read through the mount just before."""
    cell = BY_NAME[name]
    return replace(cell, title=title, options={**cell.options, **options}, cache="warm")


def both(*bars: Bar) -> dict[str, tuple[Bar, ...]]:
    return {"zram": bars, "disk": bars}


HITS = (BARE, HIT, LL)
MISSES = (BARE, MISS, SMALL, BINDFS, BINDFS_DIRECT)


def against_bindfs(subject: str) -> tuple[Bar, ...]:
    """bindfs by itself takes O_DIRECT away, and reads a source that is in the page cache."""
    return Bar(subject, BINDFS_DIRECT, 2.0), Bar(subject, BINDFS, 2.0)


RANDOM, SEQUENTIAL = "direct-randread-qd32-io_uring", "direct-seqread"
JOBS = (
    Job("pool-hit-qd1", warm("direct-randread-qd1-psync", "pool hit, 4 KiB, qd1"), HITS,
        both(Bar(HIT, LL, 2.0))),
    Job("pool-hit-qd32", warm(RANDOM, "pool hit, 4 KiB, qd32"), HITS, both(Bar(HIT, LL, 1.5))),
    Job("pool-hit-4jobs", warm(RANDOM, "pool hit, 4 KiB, qd8, 4 jobs", iodepth=8, numjobs=4), HITS,
        both(Bar(HIT, LL, 2.0))),
    Job("pool-hit-seq", warm(SEQUENTIAL, "pool hit, sequential 1 MiB, qd8"), (*HITS, MEMCPY),
        both(Bar(HIT, MEMCPY, 0.45))),
    Job("pool-miss-qd32", replace(BY_NAME[RANDOM], title="pool miss, 4 KiB, qd32"), MISSES,
        {"disk": (Bar(SMALL, BARE, 0.95), Bar(MISS, BARE, 0.95)), "zram": against_bindfs(SMALL)}),
    Job("pool-miss-seq", replace(BY_NAME[SEQUENTIAL], title="pool miss, sequential 1 MiB, qd8"),
        MISSES, {"disk": (Bar(MISS, BARE, 0.95),), "zram": against_bindfs(MISS)}),
    Job("pinned-qd1", warm("direct-randread-qd1-psync", "pinned file, 4 KiB, qd1"),
        (BARE, PINNED), {"zram": (Bar(PINNED, BARE, 1.3),), "disk": ()}),
)  # fmt: skip


def cell_for(name: str, cell: fio.Cell) -> fio.Cell:
    """passthrough_ll reads its source by the flags of the file: without O_DIRECT, the page cache.

    Its mount caches nothing, so every read comes to the daemon, as it comes to zcfsd.
    """
    if name != LL:
        return cell
    return replace(cell, options={**cell.options, "direct": 0, "invalidate": 0})


def mount_cells(
    store: Store, subjects: Sequence[Subject], settings: Settings, membw: Path
) -> list[Cell]:
    """Those that go through a mount. The subjects are the bare directory, zcfs and the peers."""
    jobs = [job for job in JOBS if settings.wants(job.key)]
    if not jobs:
        return []
    size_mib = QUICK_MIB if settings.quick else FILE_MIB
    done = []
    with ExitStack() as stack:
        work = stack.enter_context(fio.workspace(store.source, size_mib * host.MIB))
        notes: dict[str, str] = {}
        mounts = mount_all(stack, subjects, store, notes)
        mounts[MEMCPY] = Mount(membw, 0)
        for job in jobs:
            unit = "MiB/s" if job.cell.bandwidth else "IOPS"
            own = {name: note for name, note in notes.items() if name in job.names}
            cell = Cell(job.key, job.cell.title, store.name, unit, list(job.bars[store.name]),
                        notes=own)  # fmt: skip
            done.append(measure_job(cell, job, settings, mounts, work))
    return done


def measure_job(
    cell: Cell, job: Job, settings: Settings, mounts: dict[str, Mount], work: fio.Workspace
) -> Cell:
    name_of = {str(mount.path): name for name, mount in mounts.items()}

    def measure(mount: Mount) -> float:
        name = name_of[str(mount.path)]
        if name == MEMCPY:
            return memcpy(mount.path)
        return run_cell(cell_for(name, job.cell), work, mount)

    return measure_on(cell, settings, mounts, [n for n in job.names if n in mounts], measure)


def build_membw(work: Path) -> Path:
    """The program that measures one core's memory (membw.c)."""
    program = work / "membw"
    host.run(["cc", "-O3", "-march=native", "-o", str(program), str(HERE / "membw.c")])
    return program


def memcpy(membw: Path) -> float:
    """MiB/s of one core."""
    size = 256 * host.MIB
    return 256 / float(host.run([str(membw), str(size), "2", "copy"]))


# --- without a mount ------------------------------------------------------------------------------


@dataclass
class Programs:
    """What measures, and an interpreter that has zcfs and numpy."""

    python: str
    hits: str
    found: dict[str, Any] = field(default_factory=dict)

    def python_program(self, name: str, store: Store, *arguments: object) -> dict[str, Any]:
        """What it wrote with --json; its exit status only tells about bars of its own."""
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            command = [self.python, "-P", HERE / name, "--dir", store.source, "--json", out.name]
            done = subprocess.run([*map(str, command), *map(str, arguments)], capture_output=True,
                                  text=True, timeout=1800, check=False)  # fmt: skip
            text = Path(out.name).read_text()
        if not text:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise BenchError(f"{name}: {lines[-1]}")
        figures: dict[str, Any] = json.loads(text)
        return figures

    def hit_rate(self, store: Store, batch: int) -> float:
        """Borrows a second from C."""
        file = store.source / "hits"
        done = host.run([self.hits, str(file), "256", "16384", str(batch), "1", "1"])
        file.unlink()
        return float(json.loads(done)["hits_per_second"])


LEAST = {"C, batches of 64": 10e6, "gather": 1e6, "PageRef": 3e5}


def query_cells(
    store: Store, settings: Settings, programs: Programs
) -> tuple[list[Cell], list[Limit]]:
    """Point queries and the ledger scan, from Python and C."""
    if not settings.wants("pool-queries"):
        return [], []
    queries = Cell("pool-queries", "point queries", store.name, "1/s",
                   [Bar("gather", "pread", 1.0), Bar("PageRef", "pread", 0.5)])  # fmt: skip
    hot = Cell("pool-queries-hot", "ledger scan, hot", store.name, "B/s",
               [Bar("scan hot", "memory", 0.8)])  # fmt: skip
    cold = Cell("pool-queries-cold", "ledger scan, cold", store.name, "B/s",
                [Bar("scan cold", "O_DIRECT", 0.95)])  # fmt: skip
    size = 0.25 if settings.quick else 1
    for cell, part in ((queries, "queries"), (hot, "hot"), (cold, "cold")):
        fill(cell, lambda part=part: programs.python_program(  # type: ignore[misc]
            "pool_queries.py", store, "--size", size, "--rounds", settings.rounds, "--only", part))
    for _ in range(settings.rounds):
        for name, batch in (("C", 1), ("C, batches of 64", 64)):
            if name not in queries.notes:
                keep(queries, queries.values, name,
                     lambda batch=batch: programs.hit_rate(store, batch))  # type: ignore[misc]  # fmt: skip
    for cell in (queries, hot, cold):
        report_progress(cell)
    limits = [
        Limit("pool-queries", f"point queries: {name}", store.name, "/s", float("inf"),
              queries.median(name), queries.notes.get(name, ""), at_least=least)
        for name, least in LEAST.items()
    ]  # fmt: skip
    return [queries, hot, cold], limits


def fill(cell: Cell, measured: Callable[[], dict[str, list[float]]]) -> None:
    """All rounds of a program, or the reason why there are none, at each side of each bar."""
    try:
        cell.values.update(measured())
    except (BenchError, OSError, subprocess.SubprocessError) as error:
        for bar in cell.bars:
            cell.notes[bar.subject] = str(error)
        say(f"    {cell.key}: {error}")


def tail_cells(store: Store, settings: Settings, programs: Programs) -> list[Cell]:
    """Point reads beside a scan of ten times the memory."""
    if not settings.wants("pool-tail"):
        return []
    p99 = Cell("pool-tail-p99", "p99 beside a scan, 2,000 reads/s", store.name, "s",
               [Bar("pool", "pread", 3.0)])  # fmt: skip
    rate = Cell("pool-tail-rate", "reads beside a scan, flat out", store.name, "1/s",
                [Bar("pool", "pread", 2.0)])  # fmt: skip
    found: dict[str, Any] = {}

    def all_rounds() -> dict[str, list[float]]:
        memory, seconds = (128, 2) if settings.quick else (256, 5)
        found.update(programs.python_program("pool_tail.py", store, "--memory", memory, "--seconds",
                                             seconds, "--rounds", settings.rounds))  # fmt: skip
        return {how: [each["p99"] / 1e6 for each in rounds]
                for how, rounds in found["steady"].items()}  # fmt: skip

    fill(p99, all_rounds)
    fill(rate, lambda: {how: [each["rate"] for each in rounds]
                        for how, rounds in found.get("flat out", {}).items()})  # fmt: skip
    for cell in (p99, rate):
        report_progress(cell)
    return [p99, rate]
