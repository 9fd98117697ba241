"""Show zcfs at work: make real files, mount them, and check and measure the mount.

Everything happens in a temporary directory, which is taken away at the end, also after Ctrl-C or a
failure. The exit status is not 0 when any step has failed."""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zcfs import control, engines, fio, mountinfo
from zcfs.cli.common import positive
from zcfs.errors import BusyError, ZcfsError
from zcfs.mount import Options, start, unmount
from zcfs.mountinfo import Mount

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

HELP = "make files, mount them, check and measure; leaves nothing"
DATA_SIZE = 256 << 20
ORDERS = 100_000
TRIPS = 200_000
QUERY = (
    "SELECT city, count(*) AS orders, round(sum(amount), 2) AS total "
    "FROM orders GROUP BY city ORDER BY city;"
)
MAKE_DATABASE = f"""
CREATE TABLE orders (id INTEGER PRIMARY KEY, city TEXT NOT NULL, amount REAL NOT NULL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ORDERS})
INSERT INTO orders SELECT i,
    CASE i % 4 WHEN 0 THEN 'Graz' WHEN 1 THEN 'Lyon' WHEN 2 THEN 'Oslo' ELSE 'Turku' END,
    (i * 37 % 10000) / 100.0 FROM n;
CREATE INDEX by_city ON orders (city);
"""
CELLS = (
    "direct-randread-qd1-psync",
    "direct-randread-qd32-libaio",
    "mmap-randread",
    "direct-seqread",
    "warm-seqread",
    "direct-randwrite-4job-4file",
)


class StepError(Exception):
    """A check of the demo did not hold."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir", default="/var/tmp", help="where to make the files (default %(default)s)"
    )
    parser.add_argument("--runs", type=positive, default=3, help="fio runs a side (%(default)s)")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    began = time.monotonic()
    demo = Demo(Console(highlight=False), Path(args.dir), args.runs)
    try:
        demo.play()
    finally:
        demo.clean()
    return demo.verdict(time.monotonic() - began)


@dataclass
class Demo:
    """The directory, the mount on it, and which steps have failed."""

    console: Console
    parent: Path
    runs: int
    mount: Mount | None = None
    base: Path | None = None
    daemon: int | None = None
    socket: tuple[Path, int] | None = None  #: its inode too: the name is the next mount's
    passed: int = 0
    failed: list[str] = field(default_factory=list)

    @property
    def source(self) -> Path:
        assert self.base is not None
        return self.base / "data"

    @property
    def point(self) -> Path:
        assert self.base is not None
        return self.base / "mnt"

    def play(self) -> None:
        """The steps in order; without files or a mount the others make no sense."""
        if not (self.step("make the files", make_files) and self.step("mount them", mount_files)):
            return
        self.step("ls -l on the mount", list_files)
        self.step("checksums: mount against source", compare_checksums)
        self.step("SQL by sqlite3 on the mounted database", query_database)
        self.step("Parquet by pyarrow on the mount", query_parquet)
        self.step("write through the mount, read the source", write_and_read)
        self.step("fio --verify on the mount", verify)
        self.step("status, and the computed tree .zcfs", show_status)
        self.step("fio: the mount beside the bare directory", measure)
        self.step("fio: the engines side by side", compare_engines)
        self.step("unmount", unmount_files)
        self.step("nothing is left behind", check_gone)

    def step(self, title: str, action: Callable[[Demo], RenderableType | None]) -> bool:
        """One step: ✓ or ✗, its time, and what it has to show."""
        began = time.monotonic()
        error = ""
        shown: RenderableType | None = None
        try:
            with self.console.status(title):
                shown = action(self)
        except (StepError, ZcfsError, OSError, subprocess.SubprocessError) as exc:
            error = said(exc)
        mark = "[red]✗[/]" if error else "[green]✓[/]"
        self.console.print(f"{mark} [bold]{title:<58}[/] {time.monotonic() - began:6.1f} s")
        if error:
            self.console.print(f"    {error}", style="red", markup=False, soft_wrap=True)
            self.failed.append(title)
        else:
            self.passed += 1
        self.show(shown)
        return not error

    def show(self, shown: RenderableType | None) -> None:
        """What a step has to show, indented."""
        from rich.padding import Padding

        if isinstance(shown, str):
            for line in shown.splitlines():
                self.console.print(f"    {line}", markup=False, soft_wrap=True)
        elif shown is not None:
            self.console.print(Padding(shown, (0, 0, 0, 4), expand=False))

    def clean(self) -> None:
        """Take away whatever is still there."""
        if self.base is None:
            return
        mount = mountinfo.at(str(self.point))
        if mount is not None and control.is_ours(mount):
            try:
                unmount(mount, wait=2.0)
            except BusyError:
                unmount(mount, lazy=True)
        shutil.rmtree(self.base, ignore_errors=True)

    def verdict(self, seconds: float) -> int:
        """The last line, and the exit status."""
        if self.failed:
            names = "; ".join(self.failed)
            self.console.print(f"[red]failed after {seconds:.0f} s:[/] {names}")
            return 1
        self.console.print(f"[green]all {self.passed} steps passed[/] in {seconds:.0f} s")
        return 0


def said(exc: Exception) -> str:
    """An exception as one line; of a failed program, its last words."""
    if isinstance(exc, subprocess.CalledProcessError):
        last = (exc.stderr or exc.stdout or "").strip().splitlines()[-1:]
        return f"{exc.cmd[0]}: {last[0] if last else f'exit status {exc.returncode}'}"
    return str(exc)


def table(columns: Iterable[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> Any:
    """A rich table; `right` names the columns that are set flush right."""
    from rich.table import Table

    result = Table()
    for number, column in enumerate(columns):
        result.add_column(column, justify="right" if number in set(right) else "left")
    for row in rows:
        result.add_row(*row)
    return result


def tool(*command: str | Path, given: str | None = None) -> str:
    """Run a program; its stdout. CalledProcessError when it fails."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    return done.stdout


# --- the files ------------------------------------------------------------------------------------


def make_files(demo: Demo) -> None:
    """A SQLite database, a Parquet file, 256 MiB of data, a note, a link, a directory."""
    demo.base = Path(tempfile.mkdtemp(prefix="zcfs-demo-", dir=demo.parent)).resolve()
    free = shutil.disk_usage(demo.base).free
    if free < 4 * DATA_SIZE:
        raise StepError(f"{demo.parent}: 1 GiB needed, {free >> 20} MiB free; name another --dir")
    demo.source.mkdir()
    demo.point.mkdir()
    (demo.source / "archive").mkdir()
    tool("sqlite3", demo.source / "shop.db", given=MAKE_DATABASE)
    make_parquet(demo.source / "trips.parquet")
    fio.fill(demo.source / "archive" / "data.bin", DATA_SIZE)
    (demo.source / "notes.txt").write_text("a note\n")
    (demo.source / "latest").symlink_to("archive/data.bin")


def make_parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    numbers = random.Random(1)
    columns = {
        "trip": list(range(TRIPS)),
        "km": [numbers.randrange(1, 400) for _ in range(TRIPS)],
        "car": [f"car-{i % 97}" for i in range(TRIPS)],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


# --- the steps ------------------------------------------------------------------------------------


def mount_files(demo: Demo) -> str:
    demo.mount = start(str(demo.source), str(demo.point), Options())
    status = control.query(demo.mount, "status")
    demo.daemon = status.get("pid")
    socket = control.socket_path(demo.mount)
    demo.socket = (socket, socket.stat().st_ino) if socket else None
    return (
        f"{demo.source} on {demo.point}\n"
        f"{status.get('engine')} engine, {status.get('transport')} transport, "
        f"{status.get('threads')} threads, daemon pid {demo.daemon}"
    )


def list_files(demo: Demo) -> str:
    listing = tool("ls", "-l", demo.point)
    if sorted(os.listdir(demo.point)) != sorted(os.listdir(demo.source)):
        raise StepError("the mount does not list what the source has")
    return listing.rstrip()


def compare_checksums(demo: Demo) -> Any:
    names = [p.relative_to(demo.source) for p in sorted(demo.source.rglob("*")) if p.is_file()]
    rows = []
    for name in names:
        there, here = digest(demo.source / name), digest(demo.point / name)
        if there != here:
            raise StepError(f"{name}: {here} on the mount, {there} in the source")
        rows.append((str(name), f"{(demo.point / name).stat().st_size:,}", here[:16], "equal"))
    return table(("file", "bytes", "sha256", ""), rows, right=(1,))


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def query_database(demo: Demo) -> Any:
    form = ("sqlite3", "-separator", "\t")
    here = tool(*form, demo.point / "shop.db", QUERY)
    if here != tool(*form, demo.source / "shop.db", QUERY):
        raise StepError("the query gives something else on the source")
    if tool("sqlite3", demo.point / "shop.db", "PRAGMA integrity_check;").strip() != "ok":
        raise StepError("PRAGMA integrity_check is not ok")
    rows = [line.split("\t") for line in here.splitlines()]
    return table(("city", "orders", "total"), rows, right=(1, 2))


def query_parquet(demo: Demo) -> str:
    import pyarrow.compute
    import pyarrow.parquet

    def answer(path: Path) -> tuple[int, int]:
        data = pyarrow.parquet.read_table(path)
        return data.num_rows, pyarrow.compute.sum(data["km"]).as_py()

    rows, total = answer(demo.point / "trips.parquet")
    if (rows, total) != answer(demo.source / "trips.parquet") or rows != TRIPS:
        raise StepError("the Parquet file differs from the source's")
    return f"{rows:,} trips, {total:,} km"


def write_and_read(demo: Demo) -> str:
    text = f"a note\nwritten through the mount at {time.ctime()}\n"
    with (demo.point / "notes.txt").open("a") as file:
        file.write(text.partition("\n")[2])
        file.flush()
        os.fsync(file.fileno())
    if (demo.source / "notes.txt").read_text() != text:
        raise StepError("notes.txt in the source is not what was written")
    tool("sqlite3", demo.point / "shop.db", "INSERT INTO orders VALUES (0, 'Brno', 12.5);")
    count = tool("sqlite3", demo.source / "shop.db", "SELECT count(*) FROM orders;").strip()
    if int(count) != ORDERS + 1:
        raise StepError(f"{count} orders in the source after an INSERT on the mount")
    return f"notes.txt in the source: {text.splitlines()[1]}\nshop.db in the source: {count} orders"


def verify(demo: Demo) -> str:
    path = demo.point / "verify.bin"
    for direct in (0, 1):
        tool(
            "fio", "--name=verify", f"--filename={path}", "--rw=randwrite", "--bs=8k",
            "--size=32m", "--ioengine=psync", f"--direct={direct}", "--verify=crc32c",
            "--verify_fatal=1", "--verify_state_save=0", "--fallocate=none",
        )  # fmt: skip
    path.unlink()
    return "32 MiB in random order, buffered and O_DIRECT: every checksum right"


def show_status(demo: Demo) -> Any:
    assert demo.mount is not None
    status = control.query(demo.mount, "status")
    version = (demo.point / ".zcfs" / "version").read_text().strip()
    rows = [
        (".zcfs/version", version),
        ("engine", str(status.get("engine"))),
        ("transport", str(status.get("transport"))),
        ("control plane", str(status.get("control_plane", {}).get("state"))),
    ]
    rows += [(f"degraded: {d['what']}", d["reason"]) for d in status.get("degradations", ())]
    return table(("", ""), rows)


def measure(demo: Demo) -> Any:
    from zcfs.cli.tables import comparison_table

    assert demo.mount is not None
    known = {cell.name: cell for cell in fio.cells_here()}
    with fio.workspace(demo.source, DATA_SIZE // 2) as work:
        results = [
            fio.compare(
                known[name], work, bare=demo.source, mount=demo.point, runs=demo.runs, runtime=0.8
            )
            for name in CELLS
        ]
    return comparison_table(results, f"{fio.version()}, median of {demo.runs}")


def compare_engines(demo: Demo) -> Any:
    from zcfs.cli.tables import engines_table

    known = {cell.name: cell for cell in fio.cells_here()}
    with fio.workspace(demo.source, DATA_SIZE // 4, files=1) as work:
        result = engines.side_by_side(
            str(demo.source), work, [known[name] for name in engines.CELLS],
            runs=demo.runs, runtime=0.4,
        )  # fmt: skip
    return engines_table(result, f"{fio.version()}, median of {demo.runs}")


def unmount_files(demo: Demo) -> None:
    assert demo.mount is not None
    unmount(demo.mount)


def check_gone(demo: Demo) -> None:
    """No mount, no daemon, no socket, no file."""
    assert demo.mount is not None
    assert demo.base is not None
    if mountinfo.at(str(demo.point)) is not None:
        raise StepError(f"{demo.point} is still mounted")
    if demo.daemon is not None and runs(demo.daemon):
        raise StepError(f"the daemon (pid {demo.daemon}) still runs")
    if demo.socket is not None and is_there(*demo.socket):
        raise StepError(f"{demo.socket[0]} is still there")
    shutil.rmtree(demo.base)


def is_there(path: Path, inode: int) -> bool:
    try:
        return path.stat().st_ino == inode
    except OSError:
        return False


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
