"""A running control plane, and documents like the daemon's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .plane import Plane

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "pid": 4242,
    "source": "/srv/data",
    "mountpoint": "/mnt/data",
    "device": "0:45",
    "protocol": "7.45",
    "uptime_s": 12.5,
    "engine": "kernel",
    "transport": "dev",
    "threads": 2,
    "locks": "source",
    "read_only": False,
    "allow_other": True,
    "max_write": 1048576,
    "control_plane": {"state": "running", "pid": 4243, "restarts": 1},
    "engines": {"kernel": {"open_files": 3}, "buffered": {"open_files": 1}},
    "inodes": 17,
    "backing_ids": 3,
    "descriptors": 21,
    "features": {"passthrough": True, "over_io_uring": False},
    "degradations": [{"what": "transport uring", "reason": "enable_uring is off"}],
}
STATS: dict[str, Any] = {
    "uptime_s": 12.5,
    "requests": {
        "LOOKUP": {"count": 10, "errors": 2, "ns": 1500000},
        "READ": {"count": 4, "errors": 0, "ns": 250000000},
    },
    "bytes_read": 16384,
    "bytes_written": 512,
    "ledger": {
        "kernel": {
            "read": {"bytes_delivered": 0, "bytes_passthrough": 77},
            "write": {"bytes_delivered": 0},
        },
        "pool": {
            "read": {
                "requests": 4,
                "bytes_delivered": 16384,
                "bytes_copied_user": 0,
                "bytes_copied_kernel": 16384,
                "bytes_moved": 5,
                "syscalls": 8,
                "copies_per_byte": 1.0,
            },
        },
    },
    "pool": {"hits": 3, "misses": 1, "readahead": 2, "evictions": 6, "syscalls": 7, "borrowed": 0},
    "relay": {"requests": 9, "outstanding": 1, "restarts": 1},
    "workers": {"threads": 4, "jobs": 6},
    "inodes": 17,
    "descriptors": 21,
}


@pytest.fixture
def quiet_plane(tmp_path: Path) -> Iterator[Plane]:
    """After INIT, with the fault files; the test answers control questions itself.

    A test that does not read the log fails if there is more in it than information.
    """
    with Plane(tmp_path / "log", ZCFS_TEST_FAULTS="1") as plane:
        plane.start()
        yield plane
        if not plane.log_was_read:
            assert plane.log_lines() == []


@pytest.fixture
def plane(quiet_plane: Plane) -> Plane:
    """As `quiet_plane`, with a daemon that answers."""
    quiet_plane.daemon.answers = {"status": STATUS, "stats": STATS}
    return quiet_plane
