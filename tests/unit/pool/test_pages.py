"""Many pages at a time, in a block and in a loop, and runs of them."""

from __future__ import annotations

import pytest

import zcfs
from zcfs.pool import PoolFile

from .conftest import PAGE, PAGES, content


def test_a_block_borrows_all(file: PoolFile) -> None:
    with file.pages([5, 1, 5, PAGES - 1]) as pages:
        assert len(pages) == 4
        assert [page.number for page in pages] == [5, 1, 5, PAGES - 1]
        assert pages[0].address == pages[2].address
        assert sum(shared for _, _, shared in file.pool.borrowed()) == 4
        assert bytes(pages[1].data) == content()[PAGE : 2 * PAGE]
    assert file.pool.borrowed() == []
    assert file.pool.statistics().leaked == 0
    with pytest.raises(ValueError, match="inside"):
        pages[0]


def test_a_loop_borrows_one_after_the_other(file: PoolFile) -> None:
    assert b"".join(page.data for page in file.pages(range(len(file)))) == content()
    kept = list(file.pages(range(3)))
    with pytest.raises(zcfs.BorrowError, match="ended"):
        kept[0].data  # noqa: B018
    assert file.pool.borrowed() == []


def test_a_loop_that_is_left(file: PoolFile) -> None:
    for page in file.pages(range(len(file))):
        if page.number == 3:
            break
    assert file.pool.borrowed() == []


def test_runs_are_the_pages_side_by_side(file: PoolFile) -> None:
    at = 0
    for run in file.pages(range(2, len(file))).runs():
        assert run.number == 2 + at
        assert run.size == len(run.data)
        assert bytes(run.data) == content()[run.number * PAGE :][: run.size]
        with file.page(run.number + run.pages - 1) as last:
            assert last.address == run.address + (run.pages - 1) * PAGE
        at += run.pages
    assert at == PAGES - 2
    assert file.pool.borrowed() == []


def test_a_run_that_is_looked_at_stays(file: PoolFile) -> None:
    arrays = [run.array("<i8") for run in file.pages(range(10)).runs()]
    assert file.pool.statistics().leaked == 10
    assert [word for array in arrays for word in array] == list(range(0, 10 * PAGE, 8))
    del arrays
    assert file.pool.statistics().leaked == 0
    assert file.pool.borrowed() == []


@pytest.mark.parametrize("numbers", [range(0), [], range(9, 2, -3), range(0, 30, 7), [3, 2, 1]])
def test_any_order(file: PoolFile, numbers: range | list[int]) -> None:
    assert [page.number for page in file.pages(numbers)] == list(numbers)
    assert [run.number for run in file.pages(numbers).runs() if run.pages == 1] == [
        run.number for run in file.pages(numbers).runs()
    ]
    with file.pages(numbers) as pages:
        assert [page.number for page in pages] == list(numbers)


def test_past_the_end(file: PoolFile) -> None:
    numbers = []
    with pytest.raises(IndexError):
        for page in file.pages(range(PAGES - 2, PAGES + 2)):
            numbers.append(page.number)
    assert numbers == [PAGES - 2, PAGES - 1]
    with pytest.raises(IndexError), file.pages([1, PAGES]):
        pass
    with pytest.raises(IndexError):
        file.pages([-1])
    with pytest.raises(IndexError):
        file.pages(range(3, -2, -1))
    assert file.pool.borrowed() == []


def test_prefetch(file: PoolFile) -> None:
    file.prefetch(range(0, 20))
    file.prefetch(range(0))
    file.prefetch(range(10 * PAGES, 20 * PAGES))
    assert b"".join(page.data for page in file.pages(range(20))) == content()[: 20 * PAGE]
    with pytest.raises(ValueError):
        file.prefetch(range(0, 10, 2))
    with pytest.raises(ValueError):
        file.prefetch(range(-3, 10))
