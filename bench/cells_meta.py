"""Metadata on 4,000 files: a mount made for each measurement, so that it knows no name.

"Cold" means cold for the mount: the source's own dentries and inodes are warmed first, so that the
figures tell what the layer in between costs, not what the disk below costs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import host
from bench.cells import Bar, Cell, Settings, Store, measure_fresh
from bench.subjects import Mount, Subject

FILES = 4000
TREE = "meta"
SUBJECT = "zcfs"
PEERS = ("bindfs", "passthrough_ll")


@dataclass(frozen=True)
class Operation:
    """One of metaops' verbs. `files`: whether they must be there before, or must not."""

    verb: str
    title: str
    files: bool = True


OPERATIONS = (
    Operation("stat", "cold stat"),
    Operation("open", "cold open + close"),
    Operation("reopen", "open + close of known names"),
    Operation("create", "create + close", files=False),
    Operation("unlink", "unlink"),
    Operation("walk", "cold readdir + stat"),
)


def build_metaops(directory: Path) -> Path:
    """Compile the driver: Python would cost more than what it measures."""
    program = directory / "metaops"
    source = Path(__file__).parent / "metaops.c"
    host.run([shutil.which("cc") or "gcc", "-O2", "-o", str(program), str(source)])
    return program


def set_the_scene(metaops: Path, tree: Path, files: bool) -> None:
    """The tree on the source with all of its files or with none, known to the source's caches."""
    if files and tree.exists() and sum(1 for _ in tree.iterdir()) == FILES:
        host.run([str(metaops), "stat", str(tree), str(FILES)])
        return
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    if files:
        host.run([str(metaops), "create", str(tree), str(FILES)])
    os.sync()  # no journal commit of ours in somebody's timed stretch


def operations_a_second(metaops: Path, operation: Operation, directory: Path) -> float:
    """One timed stretch."""
    nanoseconds = host.run([str(metaops), operation.verb, str(directory), str(FILES)])
    return FILES * 1e9 / int(nanoseconds)


def meta_cells(
    store: Store, subjects: Sequence[Subject], settings: Settings, metaops: Path
) -> list[Cell]:
    """Every operation by every subject: 2 × each peer."""
    done = []
    tree = store.source / TREE
    for operation in OPERATIONS:
        bars = [Bar(SUBJECT, peer, 2.0) for peer in PEERS]
        key = f"meta-{operation.verb}"
        if not settings.wants(key):
            continue
        cell = Cell(key, f"{operation.title}, {FILES:,} files", store.name, "op/s", bars)

        def measure(mount: Mount, operation: Operation = operation) -> float:
            return operations_a_second(metaops, operation, mount.path / TREE)

        def prepare(operation: Operation = operation) -> None:
            set_the_scene(metaops, tree, operation.files)

        done.append(measure_fresh(cell, settings.rounds, subjects, store, measure, prepare))
    shutil.rmtree(tree, ignore_errors=True)
    return done
