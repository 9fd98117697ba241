"""What is measured: the bare directory, zcfs in its variants, and the peers.

A subject knows how to serve a source directory at a mount point; `mounted` starts it, waits until
it answers, and takes it down again. Peers come as programs: how they are built is not our business.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench import host
from bench.host import BenchError

READY_SECONDS = 20.0


@dataclass(frozen=True)
class Mount:
    """A served directory: where to read it, and who serves it (0: nobody, it is the source)."""

    path: Path
    pid: int


class Subject:
    """The bare directory itself; the others override `command`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def absent(self) -> str | None:
        """Why this subject cannot run here, or None."""
        return None

    @contextmanager
    def mounted(self, source: Path, at: Path) -> Iterator[Mount]:
        yield Mount(source, 0)


@contextmanager
def serving(command: list[str], at: Path, pass_fds: tuple[int, ...] = ()) -> Iterator[int]:
    """Run a foreground daemon around a block; unmount first, then see it off."""
    at.mkdir(parents=True, exist_ok=True)
    log = at.with_suffix(".log")
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            pass_fds=pass_fds,
            start_new_session=True,  # Ctrl-C is for us; we take the daemons down in order
        )
    try:
        yield process.pid
    finally:
        host.unmount(at)
        host.stop(process)


def last_words(at: Path) -> str:
    """The last line that a daemon wrote before it gave up."""
    with suppress(OSError, IndexError):
        return at.with_suffix(".log").read_text(errors="replace").strip().splitlines()[-1]
    return "no message"


class Peer(Subject):
    """Another FUSE filesystem, run in the foreground by the command line of its kind."""

    def __init__(self, name: str, program: str) -> None:
        super().__init__(name)
        self.program = program

    def absent(self) -> str | None:
        return None if shutil.which(self.program) else f"{self.program} not found"

    @contextmanager
    def mounted(self, source: Path, at: Path) -> Iterator[Mount]:
        command = peer_command(self.name, self.program, source, at)
        with serving(command, at) as pid:
            try:
                host.wait_until(lambda: host.is_mounted(at), READY_SECONDS, f"{self.name} to mount")
                os.statvfs(at)
            except (BenchError, OSError) as error:
                raise BenchError(f"{self.name}: {error} ({last_words(at)})") from error
            yield Mount(at, pid)


PEER_KINDS: dict[str, Callable[[str, str, str], list[str]]] = {
    "bindfs-direct": lambda program, source, at: [
        program, "-f", "--forward-odirect=4096", source, at],
    "bindfs": lambda program, source, at: [program, "-f", source, at],
    "passthrough_ll-nocache": lambda program, source, at: [
        program, "-f", "-o", f"source={source},cache=never", at],
    "passthrough_ll": lambda program, source, at: [program, "-f", "-o", f"source={source}", at],
    "passthrough_hp": lambda program, source, at: [program, "--foreground", source, at],
}


def peer_command(name: str, program: str, source: Path, at: Path) -> list[str]:
    """The command line of a peer, by the kind that its name begins with; `bindfs` otherwise."""
    for kind, command in PEER_KINDS.items():
        if name.startswith(kind):
            return command(program, str(source), str(at))
    return PEER_KINDS["bindfs"](program, str(source), str(at))


@dataclass(frozen=True)
class ZcfsOptions:
    """How zcfsd is started; `control_plane` is a Python interpreter that has zcfs, or None."""

    program: str
    control_plane: str | None
    extra: list[str] = field(default_factory=list)


class Zcfs(Subject):
    """zcfsd with one engine and one transport."""

    def __init__(self, name: str, options: ZcfsOptions, engine: str, transport: str) -> None:
        super().__init__(name)
        self.options = options
        self.engine = engine
        self.transport = transport

    def absent(self) -> str | None:
        return None if shutil.which(self.options.program) else f"{self.options.program} not found"

    def command(self, source: Path, at: Path, ready_fd: int) -> list[str]:
        command = [self.options.program, "--foreground", "--ready-fd", str(ready_fd)]
        command += ["--engine", self.engine, "--transport", self.transport]
        if self.options.control_plane:
            command += ["--control-plane", self.options.control_plane]
        return [*command, *self.options.extra, str(source), str(at)]

    @contextmanager
    def mounted(self, source: Path, at: Path) -> Iterator[Mount]:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as ready:
            command = self.command(source, at, writer)
            try:
                daemon = serving(command, at, (writer,))
                with daemon as pid:
                    os.close(writer)
                    writer = -1
                    self.wait_ready(ready.fileno(), at)
                    yield Mount(at, pid)
            finally:
                if writer >= 0:
                    os.close(writer)

    def wait_ready(self, ready_fd: int, at: Path) -> None:
        """Until the mount answers, its control plane too: it must not start while we measure."""
        readable, _, _ = select.select([ready_fd], [], [], READY_SECONDS)
        said = os.read(ready_fd, 4096).decode(errors="replace").strip() if readable else "silence"
        if said != "ready":
            raise BenchError(f"{self.name}: {said or last_words(at)}")
        if self.options.control_plane:
            version = at / ".zcfs" / "version"
            host.wait_until(lambda: readable_file(version), READY_SECONDS, f"{version}")


def readable_file(path: Path) -> bool:
    """Whether the file can be read now."""
    with suppress(OSError):
        return bool(path.read_bytes())
    return False


def find_zcfsd() -> str:
    """By ZCFS_ZCFSD, else beside this interpreter, else on PATH; a name that may not exist."""
    named = os.environ.get("ZCFS_ZCFSD")
    if named:
        return named
    for python in (sys.executable, Path(__file__).parent.parent / ".venv/bin/python"):
        beside = Path(python).parent / "zcfsd"
        if beside.exists():
            return str(beside)
    return shutil.which("zcfsd") or "zcfsd"


def find_control_plane(zcfsd: str, asked: str | None) -> str | None:
    """The interpreter that was asked for, else the one that zcfsd was installed beside, if any."""
    if asked:
        return None if asked == "none" else asked
    beside = Path(shutil.which(zcfsd) or zcfsd).parent / "python"
    inside_venv = (beside.parent.parent / "pyvenv.cfg").exists()
    return str(beside) if inside_venv and beside.exists() else None
