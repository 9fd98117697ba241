"""A pool, and a file in it whose every eight bytes say where they are."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

import zcfs
from zcfs.pool import PoolFile

PAGE = 16384
PAGES = 40
TAIL = 1000  # bytes of the last page


def content(pages: int = PAGES, tail: int = TAIL) -> bytes:
    size = (pages - 1) * PAGE + tail
    return struct.pack(f"<{size // 8}q", *range(0, size, 8))


@pytest.fixture
def path(scratch: Path, tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(content())
    return path


@pytest.fixture
def pool() -> Iterator[zcfs.BufferPool]:
    with zcfs.BufferPool("16MiB") as pool:
        yield pool


@pytest.fixture
def file(pool: zcfs.BufferPool, path: Path) -> Iterator[PoolFile]:
    with pool.open(path, PAGE, writable=True) as file:
        yield file
