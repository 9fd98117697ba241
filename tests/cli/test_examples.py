"""examples/: each runs as its README says, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Run, Site

TESTS = Path(__file__).resolve().parents[1]
EXAMPLES = TESTS.parent / "examples"


def test_the_readme_names_them_all() -> None:
    text = (EXAMPLES / "README.md").read_text()
    names = {path.name for path in EXAMPLES.iterdir()} - {"README.md"}
    assert all(f"]({name})" in text for name in names)
    tests = "".join(path.read_text() for path in TESTS.rglob("test_examples.py"))
    assert all(Path(name).stem in tests for name in names), "an example without a test"


@pytest.mark.limit(120)
@pytest.mark.skipif(not shutil.which("sqlite3"), reason="needs sqlite3")
def test_sqlite_on_a_mount(tmp_path: Path) -> None:
    mountctl = Path(sys.executable).with_name("mountctl")
    if not mountctl.exists():
        pytest.skip("zcfs is not installed beside this Python")
    done = subprocess.run(
        [EXAMPLES / "sqlite_on_a_mount.sh", "20"], capture_output=True, text=True, check=False,
        env={**os.environ, "MOUNTCTL": str(mountctl), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mount|20\nsource|20\n") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.limit(120)
@pytest.mark.skipif(not shutil.which("fio"), reason="needs fio")
def test_random_4k(site: Site, mountctl: Run) -> None:
    job = EXAMPLES / "random-4k.fio"
    done = mountctl("bench", site.source, "--job", job, "--runs", "1", "--json")
    assert done.returncode == 0, done.stderr
    names = [cell["name"] for cell in json.loads(done.stdout)["cells"]]
    assert names == ["read, one at a time", "read, 32 at once", "write, 32 at once"]
    assert [p.name for p in site.source.iterdir()] == ["file"]


@pytest.mark.limit(120)
def test_lease_pages(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", EXAMPLES / "lease_pages.py"], capture_output=True, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    expected, added = done.stdout.splitlines()
    assert added.rpartition("= ")[2] == expected.rpartition(": ")[2]
    assert list(tmp_path.iterdir()) == []
