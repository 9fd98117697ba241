"""The mounts of this machine, from /proc/self/mountinfo.

Nothing here ever calls stat() on a mount: when its daemon hangs, so would the caller.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

FSTYPE = "fuse.zcfs"


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo (proc_pid_mountinfo(5))."""

    id: int
    device: str  #: "0:45"
    mountpoint: str
    options: tuple[str, ...]  #: of this mount: rw, nosuid, noatime …
    fstype: str
    source: str
    super_options: tuple[str, ...]  #: of the filesystem: ro, user_id=0 …

    @property
    def minor(self) -> int:
        """The minor device number, which names the control socket."""
        return int(self.device.partition(":")[2])

    @property
    def user_id(self) -> int:
        """The user who mounted it, as fuse says in its super options; 0 when it does not say."""
        for option in self.super_options:
            if option.startswith("user_id="):
                return int(option[8:])
        return 0


def unescape(field: str) -> str:
    """Undo mountinfo's octal escapes of space, tab, newline and backslash."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def parse_line(line: str) -> Mount:
    """One line: `36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/sda rw,errors=…`."""
    left, _, right = line.rstrip("\n").partition(" - ")
    head = left.split(" ")
    fstype, source, super_options = (*right.split(" "), "", "")[:3]
    return Mount(
        id=int(head[0]),
        device=head[2],
        mountpoint=unescape(head[4]),
        options=tuple(head[5].split(",")),
        fstype=fstype,
        source=unescape(source),
        super_options=tuple(super_options.split(",")),
    )


def read(pid: int | str = "self") -> list[Mount]:
    """Every mount that process `pid` sees, in mount order."""
    text = Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape")
    return [parse_line(line) for line in text.splitlines()]


def at(path: str) -> Mount | None:
    """The uppermost mount whose mount point is `path` (absolute, normal); no path is resolved."""
    found = [mount for mount in read() if mount.mountpoint == path]
    return found[-1] if found else None


def locate(path: str | os.PathLike[str]) -> str:
    """`path` as mountinfo spells it: absolute, its parent's symbolic links resolved.

    The last component is looked at only when `path` is no mount point, so that a hanging mount
    hangs nobody.
    """
    absolute = os.path.abspath(os.fspath(path))  # follows no symbolic link
    points = {mount.mountpoint for mount in read()}
    if absolute in points:
        return absolute
    parent, name = os.path.split(absolute)
    resolved = os.path.join(os.path.realpath(parent), name)
    return resolved if resolved in points else os.path.realpath(resolved)
