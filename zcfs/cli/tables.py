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
    # not Table's own title, which breaks where the table ends
    return Group(Text(title, style="bold", no_wrap=True, overflow="ignore"), table)


def engines_table(result: Result, title: str) -> Group:
    """Each way to serve a file: fio's figures with the ratio to the bare directory, copies, use."""
    table = Table()
    table.add_column("")
    for cell in result.cells:
        table.add_column(cell.title, justify="right")
    table.add_column("copies a byte", justify="right")
    table.add_column("what it is for")
    uses = {way.name: way.use for way in result.ways}
    for name in result.names():
        row = []
        for cell in result.cells:
            text = shown(median(result.figures[cell.name][name]), cell.bandwidth)
            row.append(text if name == BARE else f"{text} ({result.ratio(cell.name, name):.2f})")
        copies = f"{result.copies[name]:.2f}" if name in result.copies else ""
        table.add_row(name, *row, copies, uses.get(name, ""))
    for name, reason in result.missing.items():
        table.add_row(name, *["-" for _ in result.cells], "", reason)
    return Group(Text(title, style="bold", no_wrap=True, overflow="ignore"), table)


def shown(figure: Figure, bandwidth: bool) -> str:
    """One figure, in the unit that fits the work."""
    if bandwidth:
        return f"{figure.bytes_per_s / (1 << 20):,.0f} MiB/s"
    return number(figure.iops, "IOPS")
