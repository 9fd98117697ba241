"""Memory of all zcfs processes: idle, after a walk of a million files, and after FORGET.

PSS, so that pages shared between the processes count once. Peers are measured the same way, for
the reader; only zcfs has limits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from bench import host
from bench.cells import Limit, Settings, Store, say, slug
from bench.host import BenchError
from bench.subjects import Subject

FILES_PER_DIRECTORY = 1000
DIRECTORIES = 1000
QUICK_DIRECTORIES = 100
SETTLE_SECONDS = 20.0
SUBJECT = "zcfs"
LIMITS = {"idle": 80.0, "walked": 300.0, "forgotten": 120.0}
TITLES = {
    "idle": "PSS of the idle mount",
    "walked": "PSS after a walk of {files} files",
    "forgotten": "PSS after FORGET of all of them",
}


def settled_pss(pid: int, falling: bool) -> float:
    """PSS once it has stopped moving: FORGETs are worked off after drop_caches has returned."""
    last = host.pss_mib(pid)
    end = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < end:
        time.sleep(1.0)
        now = host.pss_mib(pid)
        if abs(now - last) < 0.5 and not (falling and now > LIMITS["forgotten"]):
            return now
        last = now
    return last


def pss_over_a_walk(subject: Subject, store: Store) -> dict[str, float]:
    """The three figures of one mount's life."""
    with subject.mounted(store.source, store.mounts / slug(subject.name)) as mount:
        figures = {"idle": settled_pss(mount.pid, falling=False)}
        host.run(["find", str(mount.path), "-size", "+1000k"], timeout=1800)
        figures["walked"] = settled_pss(mount.pid, falling=False)
        host.drop_caches(2)
        figures["forgotten"] = settled_pss(mount.pid, falling=True)
    return figures


def memory_limits(
    store: Store, subjects: Sequence[Subject], settings: Settings, metaops: Path
) -> list[Limit]:
    """Lay the tree, then walk it through zcfs and through each peer."""
    if not settings.wants("memory"):
        return []
    directories = QUICK_DIRECTORIES if settings.quick else DIRECTORIES
    files = f"{directories * FILES_PER_DIRECTORY:,}"
    say(f"  [{store.name}] laying {files} empty files")
    host.run([str(metaops), "tree", str(store.source), str(directories)], timeout=1800)
    host.drop_caches()
    limits = []
    for subject in subjects:
        figures: dict[str, float] = {}
        note = ""
        try:
            figures = pss_over_a_walk(subject, store)
        except (BenchError, OSError) as error:
            note = str(error)
        say(f"    {subject.name}: {figures or note}")
        limits += as_limits(subject.name, store.name, files, figures, note)
    return limits


def as_limits(
    name: str, store: str, files: str, figures: dict[str, float], note: str
) -> list[Limit]:
    """Rows of the table; the peers' have no limit."""
    rows = []
    for key, limit in LIMITS.items():
        title = f"{name}: {TITLES[key].format(files=files)}"
        at_most = limit if name == SUBJECT else float("inf")
        rows.append(Limit(f"memory-{key}", title, store, "MiB", at_most, figures.get(key), note))
    return rows
