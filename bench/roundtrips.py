"""Requests through a mount: pool hits beside empty requests and a peer, and splice beside copy.

    python3 -m bench.roundtrips hits [--peer PASSTHROUGH_LL] [--baseline ZCFSD]
    python3 -m bench.roundtrips splice

hits:   reads a second of a file that is wholly in the pool (in the page cache, for the peer), by
        O_DIRECT: 4 KiB at depth 1 and 32, 1 MiB at depth 1; reads behind the end and ioctls, which
        bring no data; and the bytes a second that memcpy moves on one core. `--baseline`: another
        zcfsd, to compare.
splice: the buffered engine on /dev/fuse, --splice never beside always: reads and writes a second
        of a file in the source's page cache, by size, and the daemon's CPU seconds for a GiB.

All subjects take turns on mounts that stay up; printed are medians over the rounds. Needs root, cc
and liburing; --zcfsd names the daemon. What makes the requests is roundtrip.c.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import host
from bench.subjects import Mount, Peer, Subject, Zcfs, ZcfsOptions, find_zcfsd

SIZE = 64 * host.MIB
SIZES = (4096, 16384, 65536, 262144, 524288)
PLACES = 4096  # of roundtrip.c, which goes once through so many at most before it starts the clock


def build(directory: Path) -> Path:
    program = directory / "roundtrip"
    source = str(Path(__file__).with_name("roundtrip.c"))
    host.run(["cc", "-O2", "-D_GNU_SOURCE", "-o", str(program), source, "-luring"])
    return program


class Work:
    """Runs roundtrip.c on a mount's file."""

    def __init__(self, program: Path, seconds: float) -> None:
        self.program = program
        self.seconds = seconds

    def rate(self, path: Path, what: str, size: int = 4096, depth: int = 1) -> float:
        """Requests a second."""
        command = [str(self.program), str(path), str(size), str(depth), str(self.seconds), what]
        return float(host.run(command))

    def memcpy(self) -> float:
        """Bytes a second on one core."""
        return float(host.run([str(self.program), "-", str(host.MIB), "1", "0.5", "memcpy"]))


@contextmanager
def mounts(subjects: list[Subject], root: Path) -> Iterator[dict[str, Mount]]:
    """All at once, on one source that has the file."""
    source = root / "source"
    source.mkdir()
    for name in ("file", "written"):
        (source / name).write_bytes(os.urandom(SIZE))
    with ExitStack() as stack:
        yield {
            one.name: stack.enter_context(
                one.mounted(source, root / one.name.replace("/", "-").replace(" ", "-"))
            )
            for one in subjects
        }


def zcfs(name: str, program: str, engine: str, transport: str, *extra: str) -> Subject:
    return Zcfs(name, ZcfsOptions(program, None, list(extra)), engine, transport)


def middle(rounds: list[dict[str, float]], key: str) -> float:
    return statistics.median(one[key] for one in rounds)


def hits(options: argparse.Namespace, work: Work, root: Path) -> None:
    programs = {"pool": options.zcfsd} | (
        {"baseline": options.baseline} if options.baseline else {}
    )
    subjects = [
        zcfs(f"{name}/{transport}", program, "pool", transport)
        for name, program in programs.items()
        for transport in ("dev", "uring")
    ]
    if options.peer:
        subjects.append(Peer("passthrough_ll", options.peer))
    found: dict[str, list[dict[str, float]]] = {one.name: [] for one in subjects}
    copies = []
    with mounts(subjects, root) as mounted:
        for _ in range(options.rounds):
            copies.append(work.memcpy())
            for name, mount in mounted.items():
                file = mount.path / "file"
                found[name].append(
                    {
                        "qd1": work.rate(file, "read"),
                        "qd32": work.rate(file, "read", depth=32),
                        "empty": work.rate(file, "empty"),
                        "ioctl": work.rate(file, "ioctl"),
                        "1m": work.rate(file, "read", host.MIB) * host.MIB,
                    }
                )
    memcpy = statistics.median(copies)
    print(f"memcpy on one core: {memcpy / 1e9:.2f} GB/s")
    print("| | 4 KiB depth 1 | of empty reads | of ioctls | 4 KiB depth 32 | 1 MiB | of memcpy |")
    print("|---|---|---|---|---|---|---|")
    for name, rounds in found.items():
        shares = [
            statistics.median(one["qd1"] / one[nothing] for one in rounds)
            for nothing in ("empty", "ioctl")
        ]
        print(
            f"| {name} | {middle(rounds, 'qd1'):,.0f}/s | {shares[0]:.2f} | {shares[1]:.2f} | "
            f"{middle(rounds, 'qd32'):,.0f}/s | {middle(rounds, '1m') / 1e9:.2f} GB/s | "
            f"{middle(rounds, '1m') / memcpy:.2f} |"
        )


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process, as the scheduler counts them."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(one.read_text().split()[0]) for one in threads) / 1e9


def spliced(work: Work, mount: Mount, what: str, size: int) -> dict[str, float]:
    before = cpu_seconds(mount.pid)
    rate = work.rate(mount.path / ("file" if what == "read" else "written"), what, size)
    first = min(PLACES, 4 * SIZE // size)
    gib = (first + rate * work.seconds) * size / (1 << 30)
    return {"rate": rate, "cpu": (cpu_seconds(mount.pid) - before) / gib}


def splice(options: argparse.Namespace, work: Work, root: Path) -> None:
    ways = ("never", "always")
    subjects = [zcfs(way, options.zcfsd, "buffered", "dev", "--splice", way) for way in ways]
    print("| | copied | spliced | of copied | CPU s/GiB copied | spliced |")
    print("|---|---|---|---|---|---|")
    with mounts(subjects, root) as mounted:
        for what in ("read", "write"):
            for size in SIZES:
                found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
                for _ in range(options.rounds):
                    for way in ways:
                        found[way].append(spliced(work, mounted[way], what, size))
                pairs = zip(found["never"], found["always"], strict=True)
                ratio = [b["rate"] / a["rate"] for a, b in pairs]
                rates = [f"{middle(found[way], 'rate'):,.0f}/s" for way in ways]
                cpus = [f"{middle(found[way], 'cpu'):.3f}" for way in ways]
                spread = f"{statistics.median(ratio):.2f} ({min(ratio):.2f}–{max(ratio):.2f})"
                cells = [f"{what} {size // 1024} KiB", *rates, spread, *cpus]
                print(f"| {' | '.join(cells)} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("hits", "splice"))
    parser.add_argument("--zcfsd", default=find_zcfsd())
    parser.add_argument("--baseline", metavar="ZCFSD")
    parser.add_argument("--peer", metavar="PASSTHROUGH_LL")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    options = parser.parse_args()
    run: Callable[[argparse.Namespace, Work, Path], None] = hits
    if options.what == "splice":
        run = splice
    try:
        with tempfile.TemporaryDirectory(prefix="zcfs-roundtrips-") as directory:
            work = Work(build(Path(directory)), options.seconds)
            run(options, work, Path(directory))
    except host.BenchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
