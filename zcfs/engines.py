"""The engines side by side: one directory, mounted once for each way to serve its files.

    with fio.workspace(directory, size=128 << 20, files=1) as work:
        result = side_by_side(directory, work, cells, runs=3, runtime=0.5)

All mounts stay up, and take turns with the bare directory on the same file.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zcfs import control, fio
from zcfs.errors import ZcfsError
from zcfs.mount import Notice, Options, mounted
from zcfs.mountinfo import Mount

BARE = "bare"
CELLS = ("direct-randread-qd1-psync", "direct-randread-qd32-libaio", "direct-seqread")
PINNED_WITHIN = 30.0  #: seconds for a file to be loaded


@dataclass(frozen=True)
class Way:
    """A way to serve a file. `options`: of the mount, from the size of the file in bytes."""

    name: str
    use: str
    engine: str
    options: Callable[[int], Options]


def _mib(size: int) -> str:
    return f"{-(-size // fio.MIB)}M"


WAYS = (
    Way("kernel", "the default: the kernel serves the source file itself", "kernel",
        lambda size: Options(engine="kernel")),
    Way("buffered", "works everywhere: the source's page cache, through the daemon", "buffered",
        lambda size: Options(engine="buffered")),
    Way("pool hit", "a cache of a fixed size, whose pages programs borrow", "pool",
        lambda size: Options(engine="pool", pool_size=_mib(size + size // 4 + 64 * fio.MIB))),
    Way("pool miss", "the same with a file that does not fit: O_DIRECT from the disk", "pool",
        lambda size: Options(engine="pool", pool_size="16M")),
    Way("pinned", "small hot files: held in memory, served by the kernel", "pinned",
        lambda size: Options(engine="kernel", pins=("**",), pin_size=_mib(size + 16 * fio.MIB))),
)  # fmt: skip


@dataclass
class Result:
    """Figures by cell and way. `missing`: why a way could not be had here."""

    cells: Sequence[fio.Cell]
    ways: Sequence[Way]
    missing: dict[str, str] = field(default_factory=dict)
    figures: dict[str, dict[str, list[fio.Figure]]] = field(default_factory=dict)
    copies: dict[str, float] = field(default_factory=dict)  #: the daemon's, per byte read

    def names(self) -> list[str]:
        """The columns: bare, and what could be had."""
        return [BARE, *(way.name for way in self.ways if way.name not in self.missing)]

    def ratio(self, cell: str, name: str) -> float:
        """Median throughput over the bare directory's."""
        bare = fio.median(self.figures[cell][BARE]).bytes_per_s
        return fio.median(self.figures[cell][name]).bytes_per_s / bare if bare else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "ways": [
                {
                    "name": way.name, "engine": way.engine, "use": way.use,
                    "missing": self.missing.get(way.name),
                    "copies_per_byte": self.copies.get(way.name),
                }
                for way in self.ways
            ],
            "cells": [
                {
                    "name": cell.name, "title": cell.title,
                    "figures": {
                        name: fio.median(figures).as_dict() | {"ratio": self.ratio(cell.name, name)}
                        for name, figures in self.figures[cell.name].items()
                    },
                }
                for cell in self.cells
            ],
        }  # fmt: skip


def side_by_side(
    directory: str,
    work: fio.Workspace,
    cells: Sequence[fio.Cell],
    *,
    runs: int,
    runtime: float,
    notice: Notice = lambda _: None,
    step: Callable[[], None] = lambda: None,
) -> Result:
    """Run the cells on every way. `step` is called after each run of a cell on all of them."""
    result = Result(cells, WAYS)
    with contextlib.ExitStack() as stack:
        places: dict[str, str | Path] = {BARE: directory}
        mounts: dict[str, Mount] = {}
        for way in WAYS:
            try:
                mounts[way.name] = stack.enter_context(_mounted(directory, way, work.size, notice))
                _warm(way, mounts[way.name], work)
            except ZcfsError as exc:
                result.missing[way.name] = str(exc)
                continue
            places[way.name] = mounts[way.name].mountpoint
        for cell in map(_as_it_is, cells):
            result.figures[cell.name] = _measure(cell, work, places, runs, runtime, step)
        for name in set(mounts) - set(result.missing):
            result.copies[name] = copies_per_byte(control.query(mounts[name], "stats"))
    return result


@contextlib.contextmanager
def _mounted(directory: str, way: Way, size: int, notice: Notice) -> Iterator[Mount]:
    point = tempfile.mkdtemp(prefix="zcfs-engine-")
    try:
        with mounted(directory, point, way.options(size), notice) as mount:
            got = control.query(mount, "status").get("engine")
            if got != (way.engine if way.engine != "pinned" else "kernel"):
                raise ZcfsError(f"{way.name}: not to be had here; see mountctl probe")
            yield mount
    finally:
        Path(point).rmdir()


def _warm(way: Way, mount: Mount, work: fio.Workspace) -> None:
    """Read the file once; a pinned one, wait until it is in memory."""
    (path,) = work.paths(mount.mountpoint)
    fio.read_all(path)
    deadline = time.monotonic() + PINNED_WITHIN
    while way.engine == "pinned":
        files = control.query(mount, "status")["pins"]["list"]
        if any(one["state"] == "pinned" for one in files):
            return
        if time.monotonic() > deadline or any(one["state"] == "refused" for one in files):
            reasons = [one["reason"] or one["state"] for one in files]
            raise ZcfsError(f"pinned: {'; '.join(reasons) or 'not loaded in time'}")
        time.sleep(0.02)


def _as_it_is(cell: fio.Cell) -> fio.Cell:
    """Without fio's dropping of the cache before a run: what is warm stays so."""
    return replace(cell, options={**cell.options, "invalidate": 0})


def _measure(
    cell: fio.Cell,
    work: fio.Workspace,
    places: Mapping[str, str | Path],
    runs: int,
    runtime: float,
    step: Callable[[], None],
) -> dict[str, list[fio.Figure]]:
    """Each round begins with another place, so that drift of the machine hits all alike."""
    figures: dict[str, list[fio.Figure]] = {name: [] for name in places}
    order = deque(places)
    for _ in range(runs):
        for name in order:
            figures[name].append(fio.run_cell(cell, work, places[name], runtime))
        order.rotate(-1)
        step()
    return figures


def copies_per_byte(stats: Mapping[str, Any]) -> float:
    """Copies that the daemon made, or had made, of each byte read: 0 where no READ came to it."""
    reads = [engine["read"] for engine in stats["ledger"].values()]
    delivered = sum(one["bytes_delivered"] + one["bytes_passthrough"] for one in reads)
    copied = sum(one["bytes_copied_user"] + one["bytes_copied_kernel"] for one in reads)
    return copied / delivered if delivered else 0.0
