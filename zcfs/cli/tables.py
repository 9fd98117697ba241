"""Tables for the terminal (rich). Imported late: rich takes a tenth of a second to load."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from zcfs.cli.common import number
from zcfs.fio import Comparison, Figure, median


def comparison_table(results: Sequence[Comparison], title: str) -> Table:
    """fio's figures for the mount beside the bare directory, with the ratio."""
    table = Table(title=title, title_justify="left", title_style="bold")
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
    return table


def shown(figure: Figure, bandwidth: bool) -> str:
    """One figure, in the unit that fits the work."""
    if bandwidth:
        return f"{figure.bytes_per_s / (1 << 20):,.0f} MiB/s"
    return number(figure.iops, "IOPS")
