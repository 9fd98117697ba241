"""Tables for the terminal (rich). Imported late: rich takes a tenth of a second to load."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from zcfs.cli.common import number
from zcfs.engines import BARE, Result
from zcfs.fio import Comparison, Figure, median


def comparison_table(results: Sequence[Comparison], title: str) -> Group:
    """fio's figures for the mount beside the bare directory, with the ratio."""
    table = Table()
    table.add_column("work")
    for column in ("bare", "mount", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        bare, mount = median(result.bare), median(result.mount)
        style = "green" if result.ratio >= 0.95 else "yellow"
        table.add_row(
            result.title, shown(bare, result.bandwidth), shown(mount, result.bandwidth),
            f"[{style}]{result.ratio:.2f}[/]",
        )  # fmt: skip
    return Group(_line(title, "bold"), table)


def engines_table(result: Result, title: str) -> Group:
    """Each way to serve a file: fio's figures with the ratio to the bare directory, and copies."""
    table = Table()
    table.add_column("")
    for cell in result.cells:
        table.add_column(cell.title, justify="right")
    table.add_column("copies a byte", justify="right")
    for name in result.names():
        row = []
        for cell in result.cells:
            text = shown(median(result.figures[cell.name][name]), cell.bandwidth)
            ratio = "" if name == BARE else f"\n{result.ratio(cell.name, name):.2f}"
            row.append(text + ratio)
        table.add_row(name, *row, f"{result.copies[name]:.2f}" if name in result.copies else "")
    notes = [f"{way.name:<10} {result.missing.get(way.name, way.use)}" for way in result.ways]
    return Group(_line(title, "bold"), table, *map(_line, notes))


def _line(text: str, style: str = "") -> Text:
    """One line, not broken where a table ends."""
    return Text(text, style=style, no_wrap=True, overflow="ignore")


def shown(figure: Figure, bandwidth: bool) -> str:
    """One figure, in the unit that fits the work."""
    if bandwidth:
        return f"{figure.bytes_per_s / (1 << 20):,.0f} MiB/s"
    return number(figure.iops, "IOPS")
