"""Everyday tools on a tree of small files: seconds by the wall clock, each on a fresh mount."""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import host
from bench.cells import Bar, Cell, Settings, Store, measure_fresh, say
from bench.subjects import Mount, Subject

TREE_FILES = 20_000
QUICK_FILES = 4_000
FILES_PER_DIRECTORY = 100
COMMITS = 20
SUBJECT = "zcfs"
PEER = "bindfs"
OUT = "out"


@dataclass(frozen=True)
class Tool:
    """A command, run in the mount; what it makes is `out`, which is removed before each run."""

    key: str
    title: str
    command: Callable[[Path, Path], list[str]]  # (root of the mount, the archive)


TOOLS = (
    Tool("git-clone", "git clone of a local repository",
         lambda root, _: ["git", "-c", "safe.directory=*", "clone", "-q", str(root / "repo"),
                          str(root / OUT)]),
    Tool("tar-x", "tar x of {files} small files",
         lambda root, archive: ["tar", "-xf", str(archive), "-C", str(root / OUT)]),
    Tool("rsync", "rsync -a of {files} small files",
         lambda root, _: ["rsync", "-a", f"{root / 'tree'}/", str(root / OUT)]),
    Tool("find", "find by size and time over {files} files",
         lambda root, _: ["find", str(root / "tree"), "-size", "+1000k", "-newermt", "1990-01-01"]),
)  # fmt: skip


def small_files(count: int) -> bytes:
    """A tar archive of `count` files of 0 to 8 KiB, a hundred in a directory, always the same."""
    rng = random.Random(1)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(count):
            data = rng.randbytes(rng.randrange(8192))
            name = f"d{number // FILES_PER_DIRECTORY:04}/f{number:06}"
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def make_repository(tree: Path, repository: Path) -> None:
    """A repository of the tree's files, the later half of them in commits of their own."""
    shutil.copytree(tree, repository)
    git = ["git", "-C", str(repository), "-c", "user.name=bench", "-c", "user.email=bench@invalid"]
    git += ["-c", "gc.auto=0", "-c", "safe.directory=*"]
    host.run([*git, "init", "-q"])
    parts = sorted(path.name for path in repository.iterdir() if path.name != ".git")
    step = max(1, len(parts) // COMMITS)
    for first in range(0, len(parts), step):
        host.run([*git, "add", *parts[first : first + step]])
        host.run([*git, "commit", "-q", "-m", f"part {first}"])
    host.run([*git, "repack", "-adq"])


def lay_tree(source: Path, archive: Path, files: int) -> None:
    """The archive outside the store; the unpacked tree and the repository on it."""
    archive.write_bytes(small_files(files))
    (source / "tree").mkdir()
    host.run(["tar", "-xf", str(archive), "-C", str(source / "tree")])
    make_repository(source / "tree", source / "repo")


def prepare(source: Path) -> None:
    """An empty `out`; nothing waiting to be written."""
    shutil.rmtree(source / OUT, ignore_errors=True)
    (source / OUT).mkdir()
    os.sync()


def seconds_of(tool: Tool, mount: Mount, archive: Path) -> float:
    """The wall clock of one run, as the user sees it (what it wrote may still be in the cache)."""
    command = tool.command(mount.path, archive)
    start = time.perf_counter()
    host.run(command, timeout=600)
    return time.perf_counter() - start


def missing_tool(tool: Tool, archive: Path) -> str | None:
    """The program that this cell lacks, or None."""
    program = tool.command(Path("/"), archive)[0]
    return None if shutil.which(program) else f"{program} is not installed"


def tool_cells(store: Store, subjects: Sequence[Subject], settings: Settings) -> list[Cell]:
    """Every tool by every subject: 1.5 × bindfs."""
    wanted = [tool for tool in TOOLS if settings.wants(tool.key)]
    if not wanted:
        return []
    files = QUICK_FILES if settings.quick else TREE_FILES
    archive = store.mounts / "small.tar"
    say(f"  [{store.name}] laying a tree of {files:,} small files and a repository of them")
    lay_tree(store.source, archive, files)
    done = []
    for tool in wanted:
        title = tool.title.format(files=f"{files:,}")
        cell = Cell(tool.key, title, store.name, "s", [Bar(SUBJECT, PEER, 1.5)])
        why = missing_tool(tool, archive)
        if why:
            cell.notes = {subject.name: why for subject in subjects}
        done.append(
            measure_fresh(cell, settings.rounds, subjects, store,
                          lambda at, tool=tool: seconds_of(tool, at, archive),  # type: ignore[misc]
                          lambda: prepare(store.source))
        )  # fmt: skip
    for name in ("tree", "repo", OUT):
        shutil.rmtree(store.source / name, ignore_errors=True)
    return done
