"""page_mut: written back at the end of the block, dropped after an exception."""

from __future__ import annotations

from pathlib import Path

import pytest

import zcfs
from zcfs.pool import PoolFile

from .conftest import PAGE, PAGES, TAIL, content


def on_disk(file: PoolFile, number: int) -> bytes:
    return Path(file.path).read_bytes()[number * PAGE :][:PAGE]


@pytest.mark.parametrize("durable", [False, True])
def test_written_back(file: PoolFile, durable: bool) -> None:
    with file.page(3) as page:
        version = page.version
    with file.page_mut(3, durable=durable) as page:
        page.data[8:16] = b"changed!"
        assert on_disk(file, 3) == content()[3 * PAGE : 4 * PAGE]
    assert on_disk(file, 3)[8:16] == b"changed!"
    with file.page(3) as after:
        assert after.data[:16] == content()[3 * PAGE :][:8] + b"changed!"
        assert after.version > version
    file.flush()
    file.fsync()


def test_dropped_after_an_exception(file: PoolFile) -> None:
    with pytest.raises(KeyError), file.page_mut(3) as page:
        page.data[:4] = b"oops"
        raise KeyError
    assert on_disk(file, 3) == content()[3 * PAGE : 4 * PAGE]
    with file.page(3) as page:
        assert page.data[:8] == content()[3 * PAGE :][:8]


def test_dropped_without_a_block(file: PoolFile) -> None:
    page = file.page_mut(3)
    page.data[:4] = b"oops"
    del page
    again = file.page_mut(3)
    again.data[:4] = b"oops"
    again.release()
    with file.page(3) as after:
        assert after.data[:8] == content()[3 * PAGE :][:8]
    assert file.pool.borrowed() == []


def test_a_view_that_outlives_the_block_is_nobodys(file: PoolFile) -> None:
    with file.page_mut(3) as page:
        words = page.array("<i8")
        words[0] = 1
    assert file.pool.statistics().leaked == 1
    words[0] = 2
    for _ in range(2):
        with file.page_mut(3) as page:
            assert page.array("<i8")[0] == 1
            page.array("<i8")[1] = 7
    assert words[0] == 2
    assert list(words[:2]) != [1, 7]
    assert on_disk(file, 3)[:16] == (1).to_bytes(8, "little") + (7).to_bytes(8, "little")
    del words
    assert file.pool.statistics().leaked == 0
    assert file.pool.borrowed() == []
    with file.page(3) as after:
        assert after.array("<i8")[0] == 1


def test_a_view_that_outlives_an_exception(file: PoolFile) -> None:
    with pytest.raises(KeyError), file.page_mut(3) as page:
        words = page.array("<i8")
        words[0] = 1
        raise KeyError
    with file.page(3) as page:
        assert page.array("<i8")[0] == 3 * PAGE
    assert words[0] == 1
    del words
    assert file.pool.borrowed() == []


def test_the_last_page_stays_short(file: PoolFile) -> None:
    with file.page_mut(PAGES - 1) as page:
        assert len(page.data) == TAIL
        page.data[:] = b"z" * TAIL
    assert file.size == (PAGES - 1) * PAGE + TAIL
    assert on_disk(file, PAGES - 1) == b"z" * TAIL


def test_readers_keep_the_version_that_they_have(file: PoolFile) -> None:
    """A borrow holds off page_mut; a write by somebody else does not change what it sees."""
    with file.page(3) as page:
        data = page.data
        with Path(file.path).open("rb+") as out:
            out.seek(3 * PAGE)
            out.write(b"behind the pool")
        assert data[:8] == content()[3 * PAGE :][:8]
        del data
    with file.pool.open(file.path, PAGE) as again, again.page(3) as page:
        assert bytes(page.data[:15]) == b"behind the pool"


def test_not_writable(pool: zcfs.BufferPool, path: Path) -> None:
    with pool.open(path) as file, pytest.raises(ValueError, match="writable=True"):
        file.page_mut(0)


def test_closed_in_the_middle(pool: zcfs.BufferPool, path: Path) -> None:
    file = pool.open(path, PAGE, writable=True)
    with pytest.raises(ValueError, match="closed"), file.page_mut(0) as page:
        page.data[:4] = b"lost"
        file.close()
    assert path.read_bytes() == content()
    assert pool.borrowed() == []
