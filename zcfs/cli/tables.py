"""Tables for the terminal (rich). Imported late: rich takes a tenth of a second to load."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from zcfs.cli.common import number
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


def shown(figure: Figure, bandwidth: bool) -> str:
    """One figure, in the unit that fits the work."""
    if bandwidth:
        return f"{figure.bytes_per_s / (1 << 20):,.0f} MiB/s"
    return number(figure.iops, "IOPS")
