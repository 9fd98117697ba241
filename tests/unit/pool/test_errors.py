"""Arguments that make no sense, and files that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import zcfs
from zcfs.errors import UsageError
from zcfs.pool import PoolUsageError
from zcfs.pool.pool import parse_size


@pytest.mark.parametrize("size", [0, 4096, "1MiB", -1, (8 << 20) - 1])
def test_too_small(size: int | str) -> None:
    with pytest.raises(PoolUsageError, match="at least 8MiB"):
        zcfs.BufferPool(size)


def test_more_than_memory() -> None:
    with pytest.raises(PoolUsageError, match="the machine has"):
        zcfs.BufferPool("1000TiB")


@pytest.mark.parametrize("frame_size", [0, 1, 1000, 2048, 12288, 131072, -4096])
def test_frame_sizes(frame_size: int) -> None:
    with pytest.raises(PoolUsageError, match="power of two from 4096 to 65536"):
        zcfs.BufferPool("8MiB", frame_size)


@pytest.mark.parametrize("page_size", [1, 512, 1000, 5000, 12288, 131072])
def test_page_sizes(pool: zcfs.BufferPool, path: Path, page_size: int) -> None:
    with pytest.raises(PoolUsageError, match=f"page size {page_size}"):
        pool.open(path, page_size)


def test_usage_errors_are_both_kinds() -> None:
    assert issubclass(PoolUsageError, ValueError)
    assert issubclass(PoolUsageError, UsageError)


@pytest.mark.parametrize("name", ["", "mmap"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(PoolUsageError, match="io="):
        zcfs.BufferPool("8MiB", io=name)
    with pytest.raises(PoolUsageError, match="policy="):
        zcfs.BufferPool("8MiB", policy=name)


@pytest.mark.parametrize("io", ["io_uring", "aio", "threads"])
@pytest.mark.parametrize("policy", ["s3fifo", "wtinylfu", "clock", "lru"])
def test_each_back_end_and_policy(path: Path, io: str, policy: str) -> None:
    try:
        pool = zcfs.BufferPool("8MiB", io=io, policy=policy)
    except OSError as error:
        pytest.skip(str(error))
    with pool, pool.open(path) as file:
        assert (pool.io, pool.policy) == (io, policy)
        runs = file.pages(range(len(file))).runs()
        assert b"".join(run.data for run in runs) == path.read_bytes()


@pytest.mark.parametrize(
    ("text", "size"),
    [("256MiB", 256 << 20), ("1 GiB", 1 << 30), ("64kib", 65536), ("12", 12), ("7B", 7), (5, 5)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "1.5GiB", "-1MiB", "3 apples", "1MB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(PoolUsageError):
        parse_size(text)


def test_what_cannot_be_opened(pool: zcfs.BufferPool, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pool.open(tmp_path / "none")
    with pytest.raises(PoolUsageError, match="neither a regular file"):
        pool.open(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(PoolUsageError, match="neither a regular file"):
        pool.open(tmp_path / "fifo")
    with pytest.raises(IsADirectoryError):
        pool.open(tmp_path, writable=True)
    assert pool.statistics().borrowed == 0


def test_closed(path: Path) -> None:
    pool = zcfs.BufferPool("8MiB")
    file = pool.open(path)
    pool.close()
    for use in (
        lambda: file.page(0),
        lambda: file.size,
        lambda: len(file),
        lambda: file.prefetch(range(3)),
        lambda: file.flush(),
        lambda: file.fsync(),
        lambda: file.gather([0], 0, "<q"),
        lambda: list(file.pages([0])),
        lambda: pool.statistics(),
        lambda: pool.open(path),
    ):
        with pytest.raises(PoolUsageError, match="closed"):
            use()
    file.close()


def test_page_numbers(pool: zcfs.BufferPool, path: Path) -> None:
    with pool.open(path, writable=True) as file:
        for number in (-1, 2**64, 2**63, 1000):
            for borrow in (file.page, file.page_mut):
                with pytest.raises(IndexError):
                    borrow(number)
        with pytest.raises(TypeError):
            file.page("7")  # type: ignore[arg-type]


def test_statistics_count(pool: zcfs.BufferPool, path: Path) -> None:
    with pool.open(path) as file:
        for _ in range(2):
            with file.page(9):
                pass
        found = pool.statistics()
        assert found.hits >= 1
        assert found.misses >= 1
        assert found.bytes_read >= 16384
        assert found.size == pool.size >= 15 << 20
        assert found.used[16384] >= 1
        assert found.leaked == 0
