"""Run fio on a mount of DIR beside DIR itself, and print the ratios.

Both sides take turns. The figures are medians. The data files (2 GiB at most) are made in a hidden
subdirectory of DIR and taken away again. A job file runs there too, so its file names must be
relative. --engines mounts DIR once for each way to serve a file, and runs reads on all of them.
--json: zcfs/schemas/bench.json; of --engines: zcfs/schemas/engines.json."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zcfs import control, engines, fio
from zcfs.cli.common import (
    add_mount_options,
    mount_options,
    positive,
    positive_seconds,
    print_json,
    warn,
)
from zcfs.cli.progress import bar
from zcfs.errors import UsageError, ZcfsError
from zcfs.mount import mounted
from zcfs.mountinfo import Mount

HELP = "compare a mount with the bare directory"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mountctl bench [options] DIR"
    parser.add_argument("directory", metavar="DIR", nargs="?")
    parser.add_argument("--job", metavar="FILE.fio", help="this job instead of the cells")
    parser.add_argument(
        "--cell", action="append", metavar="NAME", help="only this cell; 'list' names them all"
    )
    parser.add_argument(
        "--engines", action="store_true", help="kernel, buffered, pool and pinned side by side"
    )
    parser.add_argument("--runs", type=positive, default=5, help="runs a side (%(default)s)")
    parser.add_argument(
        "--runtime", type=positive_seconds, default=2.0, metavar="S",
        help="seconds a run (%(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=positive, default=512, metavar="MIB", help="of the data file (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    add_mount_options(parser)


def run(args: argparse.Namespace) -> int:
    if args.cell == ["list"]:
        for cell in fio.cells_here():
            print(f"{cell.name:<32} {cell.title}")
        return 0
    cells = chosen(args.cell or (list(engines.CELLS) if args.engines else None))
    if args.engines and (args.job or any(cell.files > 1 for cell in cells)):
        raise UsageError("bench --engines: takes cells that work on one file, and no job file")
    if args.job:
        fio.check_job(args.job)
    if args.directory is None:
        raise UsageError("bench: name the directory to measure, as in: mountctl bench DIR")
    if not Path(args.directory).is_dir():
        raise ZcfsError(f"{args.directory}: no such directory; name the one to measure")
    if args.engines:
        return run_engines(args, cells)
    document, results = measure(args, cells)
    if args.json:
        print_json(document)
    else:
        show(document, results)
    return 0


def chosen(names: Sequence[str] | None) -> list[fio.Cell]:
    """The cells of these names; all without any."""
    known = {cell.name: cell for cell in fio.cells_here()}
    for name in names or ():
        if name not in known:
            raise UsageError(f"bench: no cell {name}; --cell list names them all")
    return [known[name] for name in names] if names else list(known.values())


def measure(
    args: argparse.Namespace, cells: Sequence[fio.Cell]
) -> tuple[dict[str, Any], list[fio.Comparison]]:
    """Mount, run, unmount. The result for --json, and the comparisons behind it."""
    tool = fio.version()
    directory = str(Path(args.directory).resolve())
    point = tempfile.mkdtemp(prefix="zcfs-bench-")
    try:
        with mounted(directory, point, mount_options(args), warn, foreground=args.foreground) as m:
            status = control.query(m, "status")
            results = (run_job if args.job else run_cells)(args, directory, m, cells)
    finally:
        Path(point).rmdir()
    document = {
        "directory": directory, "fio": tool, "engine": status.get("engine"),
        "transport": status.get("transport"), "runs": args.runs, "runtime_s": args.runtime,
        "size": args.size * fio.MIB, "job": args.job,
        "cells": [result.as_dict() for result in results],
    }  # fmt: skip
    return document, results


def run_engines(args: argparse.Namespace, cells: Sequence[fio.Cell]) -> int:
    """Every engine on the same file."""
    directory = str(Path(args.directory).resolve())
    document = {
        "directory": directory, "fio": fio.version(), "runs": args.runs,
        "runtime_s": args.runtime, "size": args.size * fio.MIB,
    }  # fmt: skip
    with (
        bar("fio", len(cells) * args.runs) as progress,
        fio.workspace(directory, args.size * fio.MIB, files=1) as work,
    ):
        result = engines.side_by_side(
            directory, work, cells, runs=args.runs, runtime=args.runtime, notice=warn,
            step=labelled(progress, "fio"),
        )  # fmt: skip
    if args.json:
        print_json(document | result.as_dict())
    else:
        from rich.console import Console

        from zcfs.cli.tables import engines_table

        title = f"{directory}: median of {args.runs}, {document['fio']}"
        Console().print(engines_table(result, title), soft_wrap=True)
    return 0


def run_cells(
    args: argparse.Namespace, directory: str, mount: Mount, cells: Sequence[fio.Cell]
) -> list[fio.Comparison]:
    files = max(cell.files for cell in cells)
    with (
        bar("fio", len(cells) * args.runs * 2) as progress,
        fio.workspace(directory, args.size * fio.MIB, files) as work,
    ):
        return [
            fio.compare(
                cell, work, bare=directory, mount=mount.mountpoint, runs=args.runs,
                runtime=args.runtime, step=labelled(progress, cell.title),
            )
            for cell in cells
        ]  # fmt: skip


def labelled(progress: Callable[[str], None], label: str) -> Callable[[], None]:
    return lambda: progress(label)


def run_job(
    args: argparse.Namespace, directory: str, mount: Mount, cells: Sequence[fio.Cell]
) -> list[fio.Comparison]:
    with bar("fio", args.runs * 2) as progress:
        return fio.compare_job(
            args.job, bare=directory, mount=mount.mountpoint, runs=args.runs,
            step=labelled(progress, args.job),
        )  # fmt: skip


def show(document: dict[str, Any], results: Sequence[fio.Comparison]) -> None:
    """The comparisons as a table."""
    from rich.console import Console

    from zcfs.cli.tables import comparison_table

    title = (
        f"{document['directory']}: {document['engine']} engine, {document['transport']} transport, "
        f"median of {document['runs']}, {document['fio']}"
    )
    Console().print(comparison_table(results, title), soft_wrap=True)
