"""fio's cells: random and sequential, direct and cached, reads and writes, mmap.

The cells and the way to run one are those of `mountctl bench` (zcfs.fio); what is added here is the
bar that each one has to reach, the cached writes, and the buffered engine's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench import host
from bench.cells import BARE, Bar, Cell, Settings, Store, measure_on, mount_all, say
from bench.host import BenchError
from bench.subjects import Mount, Subject
from zcfs import fio
from zcfs.errors import ZcfsError

FILE_MIB = 512
QUICK_MIB = 128
SLICE_SECONDS = 0.75
ZCFS = "zcfs"
BUFFERED = "buffered/"
HP = "passthrough_hp"
LL = "passthrough_ll"


@dataclass(frozen=True)
class Job:
    """One of zcfs.fio's cells under a key of ours."""

    key: str
    cell: fio.Cell


def cached_write(jobs: int, files: int) -> fio.Cell:
    """Sequential writes into the page cache: 1 MiB at a time, over and over the same file."""
    title = f"cached write 1 MiB, {jobs} job{'s'[: jobs > 1]}, {files} file{'s'[: files > 1]}"
    options: fio.Options = {
        "rw": "write", "bs": "1m", "ioengine": "psync", "numjobs": jobs, "thread": 1,
        "overwrite": 1, "invalidate": 0,
    }  # fmt: skip
    name = f"cached-write-{jobs}job-{files}file"
    return fio.Cell(name, title, options, files=files, bandwidth=True)


WRITE_SHAPES = ((1, 1), (4, 1), (4, 4))
KERNEL_JOBS = tuple(
    Job(cell.name, cell)
    for cell in (*fio.CELLS, *(cached_write(jobs, files) for jobs, files in WRITE_SHAPES))
)
BUFFERED_NAMES = ("direct-randread-qd1-io_uring", "direct-randread-qd32-io_uring", "cold-seqread")
BUFFERED_JOBS = tuple(
    Job(f"buffered-{cell.name}", cell) for cell in fio.CELLS if cell.name in BUFFERED_NAMES
)


def kernel_bar(cell: fio.Cell) -> Bar:
    """Writes on one file are held to passthrough_hp: the kernel takes the inode lock there."""
    if "write" in cell.name:
        return Bar(ZCFS, BARE, 0.95) if cell.files > 1 else Bar(ZCFS, HP, 1.0)
    random = cell.name.startswith(("direct-randread", "mmap"))
    return Bar(ZCFS, BARE, 0.97 if random else 0.95)


def kernel_cells(store: Store, subjects: Sequence[Subject], settings: Settings) -> list[Cell]:
    """The kernel engine's rows: zcfs beside the bare directory and passthrough_hp."""
    pairs = [(job, [kernel_bar(job.cell)]) for job in KERNEL_JOBS]
    return measure_jobs(store, subjects, settings, pairs)


def buffered_cells(store: Store, subjects: Sequence[Subject], settings: Settings) -> list[Cell]:
    """The buffered engine's rows, over each transport that is here: 2 × passthrough_ll."""
    names = [subject.name for subject in subjects if subject.name.startswith(BUFFERED)]
    bars = [Bar(name, LL, 2.0) for name in names]
    return measure_jobs(store, subjects, settings, [(job, bars) for job in BUFFERED_JOBS])


def measure_jobs(
    store: Store,
    subjects: Sequence[Subject],
    settings: Settings,
    jobs: Sequence[tuple[Job, list[Bar]]],
) -> list[Cell]:
    """All wanted cells, on mounts that stay up for all of them."""
    wanted = [(job, bars) for job, bars in jobs if settings.wants(job.key)]
    if not wanted:
        return []
    size_mib = QUICK_MIB if settings.quick else FILE_MIB
    say(f"  [{store.name}] laying a file of {size_mib} MiB and three of a quarter")
    done = []
    with ExitStack() as stack:
        work = stack.enter_context(fio.workspace(store.source, size_mib * host.MIB))
        notes: dict[str, str] = {}
        mounts = mount_all(stack, subjects, store, notes)
        for job, bars in wanted:
            unit = "MiB/s" if job.cell.bandwidth else "IOPS"
            cell = Cell(job.key, job.cell.title, store.name, unit, bars, notes=dict(notes))

            def measure(mount: Mount, what: fio.Cell = job.cell) -> float:
                return run_cell(what, work, mount)

            names = [subject.name for subject in subjects]
            done.append(measure_on(cell, settings, mounts, names, measure))
    return done


def run_cell(cell: fio.Cell, work: fio.Workspace, mount: Mount) -> float:
    """One slice. Cold is cold on both sides of a mount: all caches of the machine are dropped."""
    if cell.cache == "cold":
        host.drop_caches()
    try:
        figure = fio.run_cell(cell, work, mount.path, SLICE_SECONDS)
    except ZcfsError as error:
        raise BenchError(str(error)) from error
    return figure.bytes_per_s / host.MIB if cell.bandwidth else figure.iops
