"""fio writes, reads back and verifies, in every way to do I/O; then the source is verified in place."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import Mount

pytestmark = pytest.mark.skipif(not shutil.which("fio"), reason="fio is not installed")

COMMON = "[global]\nsize=16m\nrandseed=7\nverify=crc32c\nverify_fatal=1\ngroup_reporting\n"
JOBS = {
    "buffered": "[a]\nrw=randrw\nbsrange=512-64k\nioengine=psync\n",
    "sequential": "[a]\nrw=write\nbs=1m\nioengine=psync\nend_fsync=1\n",
    "direct": "[a]\nrw=randrw\nbs=4k\ndirect=1\nioengine=libaio\niodepth=16\n",
    "direct_uring": "[a]\nrw=randwrite\nbsrange=4k-256k\ndirect=1\nioengine=io_uring\niodepth=32\n",
    "mmap": "[a]\nrw=randrw\nbs=4k\nioengine=mmap\n",
    "mixed": "[a]\nrw=randrw\nbs=4k\nioengine=psync\n[b]\nrw=randrw\nbs=4k\ndirect=1\nioengine=libaio\n"
    "iodepth=8\n[c]\nrw=randwrite\nbs=4k\nioengine=mmap\n[d]\nrw=write\nbs=64k\nioengine=pvsync2\nfsync=16\n",
}


def fio(job: Path, directory: Path, *options: str) -> None:
    done = subprocess.run(
        ["fio", f"--directory={directory}", "--output-format=terse", *options, str(job)],
        capture_output=True,
        text=True,
        cwd=job.parent,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("name", JOBS)
def test_fio_verifies(mount: Callable[..., Mount], tmp_path: Path, name: str) -> None:
    mounted = mount()
    job = tmp_path / "job.fio"
    job.write_text(COMMON + JOBS[name])
    fio(job, mounted.path)
    fio(job, mounted.source, "--verify_only")
