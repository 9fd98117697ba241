"""What this machine grants to zcfs, line by line with the reason.

The daemon tries most of it itself (`zcfsd --probe PATH`); what concerns Python is added here.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

from zcfs.errors import DaemonError, ZcfsError
from zcfs.mount import zcfsd


@dataclass(frozen=True)
class Check:
    """One line. `granted` None: it could not be found out."""

    name: str
    granted: bool | None
    value: str | int | float | None
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def probe(path: str) -> list[Check]:
    """All checks, for a mount of `path`."""
    if not os.path.lexists(path):
        raise ZcfsError(f"{path}: no such file or directory; name what you want to mount")
    return [*native(path), control_plane()]


def native(path: str) -> list[Check]:
    """What the daemon finds."""
    done = subprocess.run(
        [zcfsd(), "--probe", path], capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise DaemonError(said[-1].removeprefix("zcfsd: "))
    try:
        rows = json.loads(done.stdout)
        return [Check(row["name"], row["granted"], row["value"], row["reason"]) for row in rows]
    except (ValueError, KeyError, TypeError) as exc:
        raise DaemonError(f"zcfsd --probe {path}: unreadable answer ({exc})") from exc


def control_plane() -> Check:
    """Whether the computed tree (.zcfs) can be served: it needs pyfuse3 and trio."""
    try:
        version = importlib.import_module("pyfuse3").__version__
        trio = importlib.import_module("trio").__version__
    except (ImportError, AttributeError) as exc:
        return Check("control_plane", False, None, f"no /.zcfs: {exc}; pip install pyfuse3 trio")
    reason = f"pyfuse3 and trio {trio} on Python {platform.python_version()}"
    return Check("control_plane", True, version, reason)


def machine() -> dict[str, str]:
    """The machine that the checks were made on."""
    return {"kernel": platform.release(), "architecture": platform.machine()}
