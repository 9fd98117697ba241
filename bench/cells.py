"""What a cell of the table is, and how one is measured: rounds, slices, paired ratios."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.host import BenchError
from bench.subjects import Mount, Subject

BARE = "bare"


@dataclass(frozen=True)
class Bar:
    """`subject` must do at least `ratio` times what `against` does in the same run."""

    subject: str
    against: str
    ratio: float


@dataclass
class Cell:
    """One row of work on one store, with what every subject did in every round."""

    key: str
    title: str
    store: str
    unit: str  # "s": less is better; all others: more is better
    bars: list[Bar]
    values: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def ratios(self, subject: str, against: str) -> list[float]:
        """Round by round; above 1 is faster than `against`. Empty when one of them is missing."""
        pairs = zip(self.values.get(subject, []), self.values.get(against, []), strict=False)
        turn = self.unit == "s"
        return [(b / a if turn else a / b) for a, b in pairs if a > 0 and b > 0]

    def median(self, subject: str) -> float | None:
        """The subject's median figure, or None without one."""
        values = self.values.get(subject)
        return statistics.median(values) if values else None


@dataclass
class Limit:
    """A figure that must stay below a limit (memory), or reach one, instead of a ratio."""

    key: str
    title: str
    store: str
    unit: str
    at_most: float
    value: float | None
    note: str = ""
    at_least: float = 0.0


@dataclass(frozen=True)
class Settings:
    """How a run measures."""

    rounds: int
    slices: int
    quick: bool
    only: str = ""

    def wants(self, key: str) -> bool:
        """Whether a cell is asked for (`--only` is a part of its key)."""
        return self.only in key


@dataclass(frozen=True)
class Store:
    """A directory on the store under test, and a place for mount points outside it."""

    name: str
    source: Path
    mounts: Path


Measure = Callable[[Mount], float]


def say(text: str) -> None:
    """Progress: on stderr, so that stdout is the table."""
    print(text, file=sys.stderr, flush=True)


def turn_order(subjects: Sequence[Subject], turn: int) -> list[Subject]:
    """Forward, then backward, so that a drift of the machine hits all alike."""
    return list(subjects) if turn % 2 == 0 else list(reversed(subjects))


def measure_on(
    cell: Cell,
    settings: Settings,
    mounts: dict[str, Mount],
    names: Sequence[str],
    measure: Measure,
) -> Cell:
    """All named subjects in turn, on mounts that stay up.

    A round is cut into slices, and the subjects alternate slice by slice: what else runs on the
    machine then hits all of them alike. A round's figure is the median of its slices.
    """
    for _ in range(settings.rounds):
        round_of: dict[str, list[float]] = {}
        for turn in range(settings.slices):
            for name in names if turn % 2 == 0 else reversed(names):
                if name in mounts and name not in cell.notes:
                    keep(cell, round_of, name, lambda at=mounts[name]: measure(at))  # type: ignore[misc]
        for name, slices in round_of.items():
            if name not in cell.notes:
                cell.values.setdefault(name, []).append(statistics.median(slices))
    report_progress(cell)
    return cell


def measure_fresh(
    cell: Cell,
    rounds: int,
    subjects: Sequence[Subject],
    store: Store,
    measure: Measure,
    prepare: Callable[[], None],
) -> Cell:
    """All subjects in turn, `rounds` times, each time on a mount made for this one measurement.

    `prepare` brings the source into its state before each mount.
    """

    def once(subject: Subject) -> float:
        prepare()
        with subject.mounted(store.source, store.mounts / slug(subject.name)) as mount:
            return measure(mount)

    for turn in range(rounds):
        for subject in turn_order(subjects, turn):
            if subject.name not in cell.notes:
                keep(cell, cell.values, subject.name, lambda who=subject: once(who))  # type: ignore[misc]
    report_progress(cell)
    return cell


def keep(cell: Cell, into: dict[str, list[float]], name: str, once: Callable[[], float]) -> None:
    """Keep the figure, or the reason why there is none: one subject's failure is its own."""
    try:
        into.setdefault(name, []).append(once())
    except (BenchError, OSError) as error:
        cell.notes[name] = str(error)
        cell.values.pop(name, None)
        say(f"    {name}: {error}")


def report_progress(cell: Cell) -> None:
    """One line a cell while the run goes on."""
    figures = ", ".join(f"{name} {cell.median(name):.6g}" for name in cell.values)
    say(f"  [{cell.store}] {cell.title}: {figures} {cell.unit}")


def slug(name: str) -> str:
    """A subject's name as a directory name."""
    return name.replace(" ", "-").replace("/", "-")


def mount_all(
    stack: ExitStack, subjects: Sequence[Subject], store: Store, notes: dict[str, str]
) -> dict[str, Mount]:
    """Mount every subject until the stack unwinds; one that fails is noted and left out."""
    mounts: dict[str, Mount] = {}
    for subject in subjects:
        try:
            at = store.mounts / slug(subject.name)
            mounts[subject.name] = stack.enter_context(subject.mounted(store.source, at))
        except (BenchError, OSError) as error:
            notes[subject.name] = str(error)
            say(f"    {subject.name}: {error}")
    return mounts
