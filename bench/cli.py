"""The command line: which sets, which subjects, which stores; then the tables."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import cells_fio, cells_memory, cells_meta, cells_pool, cells_tools, host, report
from bench.cells import BARE, Cell, Limit, Settings, Store, say
from bench.host import BenchError
from bench.subjects import Peer, Subject, Zcfs, ZcfsOptions, find_control_plane, find_zcfsd

SETS = ("fio", "buffered", "meta", "tools", "memory", "pool")
ZRAM_SIZE = "3G"
MILLION_INODES = 1_010_000
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Outcome:
    """What a run has measured so far, kept when it is interrupted."""

    cells: list[Cell] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/run",
        description="zcfs beside the bare directory and its peers, in one run (bench/README.md).",
    )
    add = parser.add_argument
    add("sets", nargs="*", metavar="SET", help=f"{', '.join(SETS)} or all (default: all)")
    add("--quick", action="store_true", help="three rounds, short runs, small trees")
    add("--rounds", type=int, metavar="N", help="rounds of each cell (default: 5)")
    add("--only", default="", metavar="TEXT", help="only cells whose key contains TEXT")
    add("--store", default="zram,disk", metavar="LIST", help="zram, disk or both (default: both)")
    add("--disk", type=Path, default=Path("/var/tmp"), metavar="DIR",
        help="where on the machine's own disk (default: /var/tmp)")  # fmt: skip
    add("--engine", default="auto", help="zcfs's engine outside the buffered set")
    add("--transport", default="auto", help="zcfs's transport outside the buffered set")
    add("--zcfsd", default=find_zcfsd(), metavar="PATH", help="default: ZCFS_ZCFSD, .venv, PATH")
    add("--control-plane", metavar="PYTHON",
        help="interpreter that has zcfs, or none (default: the one beside zcfsd)")  # fmt: skip
    add("--zcfsd-option", action="append", default=[], metavar="OPT", help="passed on to zcfsd")
    add("--peer", action="append", default=[], metavar="NAME=PATH",
        help="a peer's program: passthrough_ll=…, passthrough_hp=…")  # fmt: skip
    add("--python", metavar="PYTHON",
        help="interpreter that has zcfs and numpy, for the pool set (default: the control plane's)")
    add("--pool-hits", default="build/native/pool_hits", metavar="PATH",
        help="the program of bench/pool_hits.c (ninja native/pool_hits)")  # fmt: skip
    add("--all-peers", action="store_true",
        help="every peer in every set, not only those that a bar names")  # fmt: skip
    add("--enable-uring", action="store_true",
        help="switch FUSE-over-io_uring on for the run (and back after it)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="raw numbers, rewritten after each set")
    options = parser.parse_args(arguments)
    options.sets = list(SETS) if not options.sets or "all" in options.sets else options.sets
    for name in options.sets:
        if name not in SETS:
            parser.error(f"no set {name!r}: {', '.join(SETS)}, all")
    return options


def peers(options: argparse.Namespace) -> dict[str, Subject]:
    """bindfs always; passthrough_ll and passthrough_hp always named, absent without a program."""
    programs = {"bindfs": "bindfs", "passthrough_ll": "passthrough_ll (--peer)",
                "passthrough_hp": "passthrough_hp (--peer)"}  # fmt: skip
    for given in options.peer:
        name, separator, program = given.partition("=")
        if not separator:
            raise BenchError(f"--peer {given}: NAME=PATH is needed")
        programs[name] = program
    programs[cells_pool.LL] = programs["passthrough_ll"]
    programs[cells_pool.BINDFS_DIRECT] = programs["bindfs"]
    return {name: Peer(name, program) for name, program in programs.items()}


class Run:
    """The subjects that are here, and the sets that use them."""

    def __init__(self, options: argparse.Namespace, work: Path, uring: bool) -> None:
        self.options = options
        self.work = work
        self.uring = uring
        self.outcome = Outcome()
        quick = options.quick
        rounds = options.rounds or (3 if quick else 5)
        self.settings = Settings(rounds, 2 if quick else 4, quick, options.only)
        self.peers = peers(options)
        self.metaops = cells_meta.build_metaops(work)

    def zcfs(self, name: str, engine: str, transport: str) -> Zcfs:
        options = self.options
        control_plane = find_control_plane(options.zcfsd, options.control_plane)
        how = ZcfsOptions(options.zcfsd, control_plane, options.zcfsd_option)
        return Zcfs(name, how, engine, transport)

    def main_zcfs(self) -> Zcfs:
        return self.zcfs("zcfs", self.options.engine, self.options.transport)

    def buffered_zcfs(self) -> list[Subject]:
        found: list[Subject] = [self.zcfs("buffered/dev", "buffered", "dev")]
        if self.uring:
            found.append(self.zcfs("buffered/uring", "buffered", "uring"))
        else:
            self.outcome.absent["buffered/uring"] = "FUSE-over-io_uring is off (--enable-uring)"
        return found

    def with_peers(self, subjects: list[Subject], *needed: str) -> list[Subject]:
        """The bare directory, these, and the needed peers (all of them with --all-peers)."""
        names = list(self.peers) if self.options.all_peers else needed
        return self.present(*subjects, *(self.peers[name] for name in names))

    def present(self, *subjects: Subject) -> list[Subject]:
        """Those that can run here, the bare directory first; the others are noted as absent."""
        here = [Subject(BARE)]
        for subject in subjects:
            why = subject.absent()
            if why:
                self.outcome.absent[subject.name] = why
            else:
                here.append(subject)
        return here

    @contextmanager
    def store(self, name: str, inodes: int | None = None) -> Iterator[Store]:
        """A fresh, empty source directory on the named store."""
        mounts = self.work / "mounts"
        mounts.mkdir(exist_ok=True)
        with ExitStack() as stack:
            if name == "zram":
                root = host.ext4_on_zram(self.work / "zram", ZRAM_SIZE, inodes)
            else:
                root = host.scratch_directory(self.options.disk)
            source = stack.enter_context(root) / "source"
            source.mkdir()
            yield Store(name, source, mounts)

    def fio(self, store: Store) -> None:
        subjects = self.with_peers([self.main_zcfs()], "passthrough_hp")
        self.outcome.cells += cells_fio.kernel_cells(store, subjects, self.settings)

    def buffered(self, store: Store) -> None:
        subjects = self.with_peers(self.buffered_zcfs(), "passthrough_ll")
        self.outcome.cells += cells_fio.buffered_cells(store, subjects, self.settings)

    def meta(self, store: Store) -> None:
        peers = [name for name in self.peers if name not in cells_pool.OWN_PEERS]
        subjects = self.with_peers([self.main_zcfs()], *peers)
        cells = cells_meta.meta_cells(store, subjects, self.settings, self.metaops)
        self.outcome.cells += cells

    def tools(self, store: Store) -> None:
        subjects = self.with_peers([self.main_zcfs()], "bindfs")
        self.outcome.cells += cells_tools.tool_cells(store, subjects, self.settings)

    def memory(self, store: Store) -> None:
        subjects = self.with_peers([self.main_zcfs()], "bindfs")[1:]
        self.outcome.limits += cells_memory.memory_limits(
            store, subjects, self.settings, self.metaops
        )

    def pool(self, store: Store) -> None:
        """Without a mount on the disk alone: there the store makes a difference."""
        subjects = self.with_peers(self.pool_zcfs(), "bindfs", *cells_pool.OWN_PEERS)
        membw = cells_pool.build_membw(self.work)
        outcome = self.outcome
        outcome.cells += cells_pool.mount_cells(store, subjects, self.settings, membw)
        if store.name != "disk":
            return
        options = self.options
        control_plane = find_control_plane(options.zcfsd, options.control_plane)
        python = options.python or control_plane or sys.executable
        programs = cells_pool.Programs(python, options.pool_hits)
        cells, limits = cells_pool.query_cells(store, self.settings, programs)
        outcome.cells += cells + cells_pool.tail_cells(store, self.settings, programs)
        outcome.limits += limits

    def pool_zcfs(self) -> list[Subject]:
        """The pool with room for the file and without, and the pinned file."""
        found: list[Subject] = []
        for name, extra in cells_pool.pool_options(self.settings.quick).items():
            zcfs = self.zcfs(name, "kernel" if name == cells_pool.PINNED else "pool",
                             self.options.transport)  # fmt: skip
            zcfs.options = replace(zcfs.options, extra=[*zcfs.options.extra, *extra])
            found.append(zcfs)
        return found

    def stores(self, name: str) -> list[str]:
        """Memory does not depend on the store: one is enough."""
        wanted = [part for part in self.options.store.split(",") if part]
        return wanted[:1] if name == "memory" else wanted

    def everything(self) -> None:
        for name in self.options.sets:
            for store_name in self.stores(name):
                inodes = MILLION_INODES if name == "memory" else None
                say(f"{name} on {store_name}")
                with self.store(store_name, inodes) as store:
                    getattr(self, name)(store)
                self.save()

    def save(self) -> None:
        if self.options.json:
            settings = {key: str(value) for key, value in vars(self.options).items()}
            outcome = self.outcome
            text = report.as_json(outcome.cells, outcome.limits, outcome.absent, settings)
            report.save(self.options.json, text)


def check_environment(options: argparse.Namespace) -> None:
    """What can be known before an hour of measuring."""
    if os.geteuid() != 0:
        raise BenchError("needs root: it mounts, drops caches and makes a RAM block device")
    for program in ("fio", "mkfs.ext4", "mount", "cc"):
        if not shutil.which(program):
            raise BenchError(f"{program} is not installed")
    for store in options.store.split(","):
        if store not in ("zram", "disk", ""):
            raise BenchError(f"--store {store}: zram and disk are known")


def interrupt(_signal: int, _frame: object) -> None:
    """Unwind, once: a second signal must not stop the cleaning up."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """0: every bar that could be compared was reached; 1: not so; 2: could not measure."""
    options = parse(arguments)
    for number in SIGNALS:
        signal.signal(number, interrupt)
    run: Run | None = None
    status = 0
    try:
        check_environment(options)
        with (
            tempfile.TemporaryDirectory(prefix="zcfs-bench-") as work,
            host.fuse_over_uring(options.enable_uring) as uring,
        ):
            run = Run(options, Path(work), uring)
            run.everything()
    except BenchError as error:
        say(f"bench/run: {error}")
        status = 2
    except KeyboardInterrupt:
        say("bench/run: interrupted; what was measured follows")
        status = 130
    if run and (run.outcome.cells or run.outcome.limits):
        outcome = run.outcome
        print(report.as_text(outcome.cells, outcome.limits, outcome.absent))
        status = status or int(not report.all_reached(outcome.cells, outcome.limits))
    return status


if __name__ == "__main__":
    sys.exit(main())
