"""fio on a mount beside the bare directory: cells, alternating runs, medians, ratios.

    with workspace(directory, size=512 << 20) as work:      # data files, taken away again
        for cell in CELLS:
            result = compare(cell, work, bare=directory, mount=mountpoint, runs=5, runtime=2.0)
            print(cell.title, result.ratio)

A cell names one kind of work. The bare directory and the mount take turns, and who goes first
changes from run to run, so that drift of the machine hits both alike. Cold cells drop the pages of
the data files first (fio's own `invalidate` reaches the mount's cache only, not the source's).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zcfs.errors import UsageError, ZcfsError

MIB = 1 << 20
Options = Mapping[str, str | int]


@dataclass(frozen=True)
class Cell:
    """One kind of work. `files` > 1: as many jobs, each on a file of its own."""

    name: str
    title: str
    options: Options
    files: int = 1
    cache: str = "any"  #: "cold": dropped before each run; "warm": read once before
    bandwidth: bool = False  #: shown as bytes/s rather than as operations/s


@dataclass(frozen=True)
class Figure:
    """What one run reached, reads and writes together."""

    iops: float
    bytes_per_s: float
    latency_us: float  #: mean completion latency

    def as_dict(self) -> dict[str, float]:
        return {
            "iops": self.iops, "bytes_per_s": self.bytes_per_s, "latency_us": self.latency_us
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """All runs of one cell, or of one job of a job file."""

    name: str
    title: str
    bandwidth: bool
    bare: list[Figure] = field(default_factory=list)
    mount: list[Figure] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The mount's median throughput over the bare directory's."""
        bare = median(self.bare).bytes_per_s
        return median(self.mount).bytes_per_s / bare if bare else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "bare": median(self.bare).as_dict(),
            "mount": median(self.mount).as_dict(),
            "bare_runs": [figure.bytes_per_s for figure in self.bare],
            "mount_runs": [figure.bytes_per_s for figure in self.mount],
            "ratio": self.ratio,
        }


def median(figures: Sequence[Figure]) -> Figure:
    """Each quantity's median over the runs."""
    return Figure(
        statistics.median(f.iops for f in figures),
        statistics.median(f.bytes_per_s for f in figures),
        statistics.median(f.latency_us for f in figures),
    )


# --- the cells ------------------------------------------------------------------------------------


def _random(engine: str, depth: int, rw: str = "randread") -> Options:
    """O_DIRECT, 4 KiB. An engine that waits for each call gets its depth from threads."""
    options: dict[str, str | int] = {"rw": rw, "bs": "4k", "direct": 1, "ioengine": engine}
    if engine == "psync":
        return options | {"numjobs": depth, "thread": 1}
    return options | {"iodepth": depth}


def _cells() -> Iterator[Cell]:
    for depth in (1, 32):
        for engine in ("io_uring", "libaio", "psync"):
            title = f"O_DIRECT random 4 KiB, qd{depth} {engine}"
            yield Cell(f"direct-randread-qd{depth}-{engine}", title, _random(engine, depth))
    mmap: Options = {"rw": "randread", "bs": "4k", "ioengine": "mmap", "invalidate": 0}
    yield Cell("mmap-randread", "mmap random 4 KiB", mmap, cache="warm")
    seq: Options = {"rw": "read", "bs": "1m", "direct": 1, "ioengine": "io_uring", "iodepth": 8}
    yield Cell("direct-seqread", "O_DIRECT sequential 1 MiB, qd8", seq, bandwidth=True)
    warm: dict[str, str | int] = {"ioengine": "psync", "invalidate": 0}
    yield Cell("warm-seqread", "warm sequential read 128 KiB", warm | {"rw": "read", "bs": "128k"},
               cache="warm", bandwidth=True)  # fmt: skip
    yield Cell("warm-randread", "warm random read 4 KiB", warm | {"rw": "randread", "bs": "4k"},
               cache="warm")  # fmt: skip
    cold: Options = {"rw": "read", "bs": "128k", "ioengine": "psync", "time_based": 0}
    yield Cell("cold-seqread", "cold sequential read", cold, cache="cold", bandwidth=True)
    for jobs, files in ((1, 1), (4, 1), (4, 4)):
        write = {**_random("psync", jobs, "randwrite"), "overwrite": 1}
        title = f"O_DIRECT write 4 KiB, {jobs} job{'s'[: jobs > 1]} {files} file{'s'[: files > 1]}"
        yield Cell(f"direct-randwrite-{jobs}job-{files}file", title, write, files=files)


CELLS: tuple[Cell, ...] = tuple(_cells())


def cells_here() -> list[Cell]:
    """The cells that this machine can run: without io_uring, libaio takes its place."""
    if io_uring_works():
        return list(CELLS)
    rest = [cell for cell in CELLS if not cell.name.endswith("-io_uring")]
    return [_with_libaio(cell) if cell.options["ioengine"] == "io_uring" else cell for cell in rest]


def _with_libaio(cell: Cell) -> Cell:
    return replace(cell, options={**cell.options, "ioengine": "libaio"})


def io_uring_works() -> bool:
    """Whether io_uring_setup(2) is allowed: containers and a sysctl may forbid it."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(425, 1, ctypes.create_string_buffer(120))
    if fd >= 0:
        os.close(fd)
    return bool(fd >= 0)


# --- the files that cells work on -----------------------------------------------------------------


@dataclass(frozen=True)
class Workspace:
    """A directory of data files: data.0 has `size` bytes, data.1 to data.3 a quarter each."""

    name: str  #: relative to the directory that is mounted
    size: int

    def paths(self, root: str | Path, files: int = 1) -> list[Path]:
        return [Path(root, self.name, f"data.{i}") for i in range(files)]


@contextlib.contextmanager
def workspace(directory: str | Path, size: int, files: int = 4) -> Iterator[Workspace]:
    """Make the data files in a subdirectory of `directory`; take it away at the end."""
    need = size + (files - 1) * (size // 4)
    free = shutil.disk_usage(directory).free
    if free < need + 64 * MIB:
        raise ZcfsError(f"{directory}: {need // MIB} MiB needed, {free // MIB} MiB free")
    path = Path(tempfile.mkdtemp(prefix=".zcfs-fio-", dir=directory))
    try:
        for i in range(files):
            fill(path / f"data.{i}", size if i == 0 else size // 4)
        yield Workspace(path.name, size)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def fill(path: Path, size: int) -> None:
    """A file of `size` bytes that do not compress, on the disk."""
    block = os.urandom(MIB)
    with path.open("wb") as file:
        for at in range(0, size, MIB):
            file.write(block[at % 4096 :] + block[: at % 4096] if at else block)
        file.truncate(size)
        os.fsync(file.fileno())


def drop_pages(path: Path) -> None:
    """Drop the pages of a file from the page cache, dirty ones written first."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def read_all(path: Path) -> None:
    """Bring a file into the page cache."""
    buffer = bytearray(MIB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


# --- running fio ----------------------------------------------------------------------------------


def version() -> str:
    """fio's version, as it says. ZcfsError when it is missing."""
    return _fio(["--version"], cwd=None).strip()


def _fio(args: Sequence[str], cwd: str | Path | None) -> str:
    """Run fio. Its last words become the error."""
    try:
        done = subprocess.run(
            ["fio", *args], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise ZcfsError("fio is missing: install the package fio") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise ZcfsError(f"fio failed: {'; '.join(said[-3:])}")  # what is wrong, and where
    return done.stdout


def run_fio(args: Sequence[str], cwd: str | Path | None = None) -> list[dict[str, Any]]:
    """Run fio, and return the `jobs` of its JSON output."""
    with tempfile.TemporaryDirectory(prefix="zcfs-fio-") as scratch:
        output = Path(scratch, "result.json")
        _fio([f"--output={output}", "--output-format=json", *args], cwd)
        return parse(output.read_text())


def parse(text: str) -> list[dict[str, Any]]:
    """The `jobs` of fio's JSON; lines that fio prints before it are skipped."""
    start = text.find("{")
    try:
        document = json.loads(text[start:]) if start >= 0 else {}
    except ValueError as exc:
        raise ZcfsError(f"fio printed no JSON: {exc}") from exc
    jobs = document.get("jobs")
    if not isinstance(jobs, list) or not jobs:
        raise ZcfsError("fio's output has no jobs")
    for job in jobs:
        if job.get("error"):
            raise ZcfsError(f"fio job {job.get('jobname')}: {os.strerror(job['error'])}")
    return jobs


def figure(jobs: Sequence[Mapping[str, Any]]) -> Figure:
    """Jobs that ran together, as one figure."""
    sides = [job[op] for job in jobs for op in ("read", "write", "trim") if op in job]
    total = sum(side["total_ios"] for side in sides)
    waited = sum(side["clat_ns"]["mean"] * side["total_ios"] for side in sides)
    return Figure(
        iops=sum(side["iops"] for side in sides),
        bytes_per_s=float(sum(side["bw_bytes"] for side in sides)),
        latency_us=waited / total / 1000 if total else 0.0,
    )


def arguments(cell: Cell, work: Workspace, root: str | Path, runtime: float) -> list[str]:
    """fio's command line for a cell below `root`."""
    size = work.size if cell.files == 1 else work.size // 4
    options: dict[str, str | int] = {
        "name": cell.name, "size": size, "time_based": 1, "runtime": f"{int(runtime * 1000)}ms",
        "group_reporting": 1, "norandommap": 1, "random_generator": "tausworthe64",
        "fallocate": "none",
    }  # fmt: skip
    if cell.files == 1:
        options["filename"] = str(work.paths(root)[0])
    else:
        options["directory"] = str(Path(root, work.name))
        options["filename_format"] = "data.$jobnum"
    options |= cell.options
    if not options["time_based"]:  # the whole file once
        del options["time_based"], options["runtime"]
    return [f"--{name}={value}" for name, value in options.items()]


def run_cell(cell: Cell, work: Workspace, root: str | Path, runtime: float) -> Figure:
    """One run of a cell below `root`: the bare directory or the mount."""
    for path in work.paths(root, cell.files):
        if cell.cache == "warm":
            read_all(path)
    return figure(run_fio(arguments(cell, work, root, runtime)))


def compare(
    cell: Cell,
    work: Workspace,
    *,
    bare: str | Path,
    mount: str | Path,
    runs: int = 5,
    runtime: float = 2.0,
    step: Callable[[], None] = lambda: None,
) -> Comparison:
    """Run a cell on both, in turns. `step` is called after each of the 2 × `runs` runs."""
    result = Comparison(cell.name, cell.title, cell.bandwidth)
    for root in turns(bare, mount, runs):
        if cell.cache == "cold":
            for path in (*work.paths(mount, cell.files), *work.paths(bare, cell.files)):
                drop_pages(path)
        figures = result.bare if root == bare else result.mount
        figures.append(run_cell(cell, work, root, runtime))
        step()
    return result


def turns(bare: str | Path, mount: str | Path, runs: int) -> Iterator[str | Path]:
    """bare mount, mount bare, bare mount …: who goes first changes."""
    for i in range(runs):
        yield from (bare, mount) if i % 2 == 0 else (mount, bare)


# --- job files ------------------------------------------------------------------------------------


def check_job(path: str) -> None:
    """Refuse a job file that would work somewhere else than below the directory under test."""
    try:
        text = Path(path).read_text()
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from exc
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r"\s*(directory|filename)\s*=\s*(.*:)?(/.*)", line)
        if found:
            raise UsageError(
                f"{path}:{number}: {found[1]} is absolute; leave it out or make it relative, "
                "so that the job can run on both sides"
            )


def compare_job(
    path: str,
    *,
    bare: str | Path,
    mount: str | Path,
    runs: int = 5,
    step: Callable[[], None] = lambda: None,
) -> list[Comparison]:
    """Run a job file on both, in turns, in a directory of its own; one comparison for each job."""
    check_job(path)
    absolute = str(Path(path).resolve())
    results: dict[str, Comparison] = {}
    work = Path(tempfile.mkdtemp(prefix=".zcfs-fio-", dir=bare))
    try:
        for root in turns(bare, mount, runs):
            for number, job in enumerate(run_fio([absolute], cwd=Path(root, work.name))):
                name = f"{number}:{job['jobname']}"
                result = results.setdefault(name, Comparison(job["jobname"], job["jobname"], True))
                (result.bare if root == bare else result.mount).append(figure([job]))
            step()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return list(results.values())
