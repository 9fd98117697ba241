"""The outcome as a table of ratios for people and as JSON for programs."""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.cells import BARE, Cell, Limit

YES, NO, ABSENT = "✓", "✗", "–"


@dataclass(frozen=True)
class Check:
    """One bar, held against what was measured. `ratio` is None when a side is missing."""

    subject: str
    against: str
    ratio: float | None
    low: float | None
    high: float | None
    at_least: float
    note: str

    @property
    def mark(self) -> str:
        """✓ reached, ✗ not reached, – nothing to compare."""
        if self.ratio is None:
            return ABSENT
        return YES if self.ratio >= self.at_least else NO


def checks(cell: Cell) -> list[Check]:
    """All bars of a cell."""
    found = []
    for bar in cell.bars:
        ratios = cell.ratios(bar.subject, bar.against)
        missing = [name for name in (bar.subject, bar.against) if not cell.values.get(name)]
        note = "; ".join(f"{name}: {cell.notes.get(name, 'absent')}" for name in missing)
        middle = statistics.median(ratios) if ratios else None
        low, high = (min(ratios), max(ratios)) if ratios else (None, None)
        found.append(Check(bar.subject, bar.against, middle, low, high, bar.ratio, note))
    return found


def short(value: float | None) -> str:
    """Three or four digits, with k for thousands."""
    if value is None:
        return ABSENT
    if value >= 10_000:
        return f"{value / 1000:.4g}k"
    return f"{value:.4g}"


def check_row(cell: Cell, check: Check) -> list[str]:
    """One line of the first table."""
    spread = f"{check.low:.2f}–{check.high:.2f}" if check.low and check.high else ABSENT
    return [
        cell.store,
        cell.title,
        f"{check.subject} / {check.against}",
        f"{check.ratio:.3f}" if check.ratio is not None else ABSENT,
        spread,
        f"≥ {check.at_least:g}",
        check.mark + (f" {check.note}" if check.note else ""),
    ]


def limit_row(limit: Limit) -> list[str]:
    """One line about a figure that is no ratio."""
    bounded = math.isfinite(limit.at_most)
    mark = ABSENT
    if limit.value is not None:
        mark = YES if limit.at_least <= limit.value < limit.at_most else NO
    needed = f"< {limit.at_most:g}" if bounded else ""
    if limit.at_least:
        bounded, needed = True, f"≥ {limit.at_least:,.0f}"
    note = f" {limit.note}" if limit.note else ""
    figure = f"{limit.value:,.1f} {limit.unit}" if limit.value is not None else ABSENT
    return [limit.store, limit.title, "", figure, "", needed, (mark if bounded else "") + note]


def figure_row(cell: Cell, names: Sequence[str]) -> list[str]:
    """One line of the second table: medians, and how each stands to the bare directory."""
    row = [cell.store, cell.title, cell.unit]
    for name in names:
        ratios = cell.ratios(name, BARE)
        beside = f" ({statistics.median(ratios):.2f})" if ratios and name != BARE else ""
        row.append(short(cell.median(name)) + beside)
    return row


def aligned(head: list[str], rows: Iterable[list[str]]) -> str:
    """Columns of text."""
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
             for row in table]  # fmt: skip
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def subject_names(cells: Sequence[Cell]) -> list[str]:
    """In the order in which they first appear, the bare directory first."""
    names = [BARE]
    for cell in cells:
        names += [name for name in [*cell.values, *cell.notes] if name not in names]
    return names


def as_text(cells: Sequence[Cell], limits: Sequence[Limit], absent: dict[str, str]) -> str:
    """Both tables, who is absent, and the count."""
    rows = [check_row(cell, check) for cell in cells for check in checks(cell)]
    rows += [limit_row(limit) for limit in limits]
    head = ["store", "work", "ratio of", "median", "spread", "needed", ""]
    parts = [aligned(head, rows)]
    if cells:
        names = subject_names(cells)
        body = [figure_row(cell, names) for cell in cells]
        parts.append("Medians (in brackets: speed as a ratio to the bare directory)")
        parts.append(aligned(["store", "work", "unit", *names], body))
    parts += [f"absent: {name}: {why}" for name, why in absent.items()]
    marks = [row[-1][:1] for row in rows]
    parts.append(f"{marks.count(YES)} reached, {marks.count(NO)} not reached, "
                 f"{marks.count(ABSENT)} without a comparison")  # fmt: skip
    return "\n\n".join(parts)


def all_reached(cells: Sequence[Cell], limits: Sequence[Limit]) -> bool:
    """Whether nothing that was compared fell short."""
    rows = [check_row(cell, check) for cell in cells for check in checks(cell)]
    return not any(row[-1].startswith(NO) for row in [*rows, *map(limit_row, limits)])


def as_json(
    cells: Sequence[Cell], limits: Sequence[Limit], absent: dict[str, str], settings: dict[str, Any]
) -> str:
    """Raw numbers; every round is there."""
    document = {
        "machine": {"kernel": platform.release(), "machine": platform.machine()},
        "settings": settings,
        "absent": absent,
        "cells": [
            {**asdict(cell), "medians": {name: cell.median(name) for name in cell.values},
             "checks": [{**asdict(check), "reached": {YES: True, NO: False}.get(check.mark)}
                        for check in checks(cell)]}
            for cell in cells
        ],
        "limits": [
            {**asdict(limit), "at_most": limit.at_most if math.isfinite(limit.at_most) else None}
            for limit in limits
        ],
    }  # fmt: skip
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def save(path: Path, text: str) -> None:
    """Write the JSON, whole or not at all."""
    partial = path.with_suffix(path.suffix + ".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
