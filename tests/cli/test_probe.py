"""probe: what it says of settings that can be changed for a test."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from .conftest import MOUNTCTL


@pytest.mark.skipif(os.geteuid() != 0, reason="binds a file over /etc/fuse.conf: needs root")
@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("", False),
        ("# user_allow_other - lets users say allow_other\n#user_allow_other\n", False),
        ("mount_max = 10\n  user_allow_other  # yes\n", True),
    ],
)
def test_user_allow_other(tmp_path: Path, text: str, there: bool) -> None:
    """As fusermount3 reads /etc/fuse.conf: comments do not count."""
    conf = tmp_path / "fuse.conf"
    conf.write_text(text)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/fuse.conf && exec "$@"', conf,
         *MOUNTCTL, "probe", "--json", tmp_path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    reasons = {row["name"]: row["reason"] for row in json.loads(done.stdout)["checks"]}
    assert reasons["user_allow_other"].startswith("in /etc/fuse.conf") is there
