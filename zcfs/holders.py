"""Which processes hold a mount, and by what: an open file, a mapping, a directory, a program.

Every question is put to /proc, never to the mount, which may hang: descriptors by the mount id in
fdinfo, mappings by their device number, and cwd, root and exe by the mount id of an O_PATH
descriptor opened through /proc (a jump that sends no request to the daemon).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zcfs.mountinfo import parse_line


@dataclass(frozen=True)
class Holder:
    """One process that keeps a mount busy."""

    pid: int
    name: str
    how: str  #: "writes", "has open", "maps", "works in", "has as root", "runs"
    path: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.name}) {self.how} {self.path}"

    @property
    def may_finish(self) -> bool:
        """Whether waiting helps: files get closed, but a shell stays in its directory."""
        return self.how in ("writes", "has open", "maps")


def holders(device: str) -> list[Holder]:
    """The processes that hold the filesystem with this device number, one reason each."""
    ids: dict[str, frozenset[int]] = {}
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if pid == os.getpid():
            continue
        holder = _first_reason(pid, device, _mount_ids(pid, device, ids))
        if holder is not None:
            found.append(holder)
    return found


def _first_reason(pid: int, device: str, ids: frozenset[int]) -> Holder | None:
    """The strongest reason for which `pid` holds the mount."""
    reasons = [*_descriptors(pid, ids), *_mappings(pid, device), *_places(pid, ids)]
    if not reasons:
        return None
    how, path = min(reasons, key=lambda reason: reason[0] != "writes")
    return Holder(pid, _name(pid), how, path)


def _mount_ids(pid: int, device: str, cache: dict[str, frozenset[int]]) -> frozenset[int]:
    """The mount ids of `device` in the mount namespace of `pid`; read once per namespace."""
    try:
        namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        if namespace not in cache:
            lines = Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape").splitlines()
            mounts = map(parse_line, lines)
            cache[namespace] = frozenset(m.id for m in mounts if m.device == device)
        return cache[namespace]
    except OSError:  # gone, or somebody else's
        return frozenset()


def _descriptors(pid: int, ids: frozenset[int]) -> Iterator[tuple[str, str]]:
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd") if ids else ():
            with contextlib.suppress(OSError, ValueError, KeyError):
                info = _fdinfo(pid, fd)
                if int(info["mnt_id"]) not in ids:
                    continue
                writes = int(info["flags"], 8) & os.O_ACCMODE != os.O_RDONLY
                path = os.readlink(f"/proc/{pid}/fd/{fd}")
                yield ("writes" if writes else "has open"), path


def _fdinfo(pid: int | str, fd: int | str) -> dict[str, str]:
    text = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def _mappings(pid: int, device: str) -> Iterator[tuple[str, str]]:
    major, minor = (int(part) for part in device.split(":"))
    wanted = f"{major:02x}:{minor:02x}"
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
            parts = line.split(maxsplit=5)
            if len(parts) == 6 and parts[3] == wanted:
                writes = "w" in parts[1] and "s" in parts[1]
                yield ("writes" if writes else "maps"), parts[5]


def _places(pid: int, ids: frozenset[int]) -> Iterator[tuple[str, str]]:
    for link, how in (("cwd", "works in"), ("root", "has as root"), ("exe", "runs")):
        if not ids:
            return
        with contextlib.suppress(OSError, ValueError, KeyError):
            fd = os.open(f"/proc/{pid}/{link}", os.O_PATH | os.O_CLOEXEC)
            try:
                held = int(_fdinfo("self", fd)["mnt_id"]) in ids
            finally:
                os.close(fd)
            if held:
                yield how, os.readlink(f"/proc/{pid}/{link}")


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return "?"
