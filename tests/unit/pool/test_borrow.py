"""Who may borrow what: any number of readers of a page, or one who changes it, over threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import zcfs
from zcfs.pool import PoolFile

from .conftest import PAGE


def test_shared_borrows_are_one_frame(file: PoolFile) -> None:
    with file.page(3) as one, file.page(3) as two:
        assert one.address == two.address
        assert one.version == two.version
        assert file.pool.borrowed() == [(file.path, 3, 2)]
    assert file.pool.borrowed() == []
    assert file.pool.statistics().borrowed == 0


def test_no_exclusive_borrow_beside_shared_ones(file: PoolFile) -> None:
    with (
        file.page(3),
        file.page(3),
        pytest.raises(zcfs.BorrowError, match=r"page 3 of .*data has 2 shared borrows") as caught,
    ):
        file.page_mut(3)
    assert (caught.value.path, caught.value.page, caught.value.shared) == (file.path, 3, 2)
    with file.page_mut(3):
        pass


def test_nothing_beside_an_exclusive_borrow(file: PoolFile) -> None:
    with file.page_mut(3):
        for borrow in (file.page, file.page_mut):
            with pytest.raises(zcfs.BorrowError, match="borrowed exclusively") as caught:
                borrow(3)
            assert caught.value.shared == 0
        with pytest.raises(zcfs.BorrowError), file.pages([2, 3]):
            pass
        with pytest.raises(zcfs.BorrowError):
            file.gather([3], 0, "<q")
        with file.page(4):
            pass
    assert file.pool.borrowed() == []


def test_exclusive_over_threads(file: PoolFile) -> None:
    held, done = threading.Event(), threading.Event()

    def holder() -> None:
        with file.page_mut(5):
            held.set()
            assert done.wait(30)

    with ThreadPoolExecutor(1) as thread:
        holding = thread.submit(holder)
        assert held.wait(30)
        with pytest.raises(zcfs.BorrowError):
            file.page(5)
        done.set()
        holding.result()
    with file.page(5):
        pass


def test_threads_never_see_a_page_half_changed(file: PoolFile) -> None:
    """Writers set all words of a page to one value; readers see one value; increments add up."""
    rounds, pages, writers = 200, 3, 2
    with_lock = [threading.Lock() for _ in range(pages)]
    changed = [0] * pages
    for number in range(pages):
        with file.page_mut(number) as page:
            page.array("<i8")[:] = 0

    def writer() -> None:
        for turn in range(rounds):
            number = turn % pages
            try:
                with file.page_mut(number) as page:
                    page.array("<i8")[:] += 1
            except zcfs.BorrowError:
                continue
            with with_lock[number]:
                changed[number] += 1

    def reader() -> None:
        for turn in range(rounds):
            try:
                with file.page(turn % pages) as page:
                    words = page.array("<i8")
                    assert (words == words[0]).all()
                    del words
            except zcfs.BorrowError:
                continue

    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(job) for job in [writer] * writers + [reader] * 2]
        for job in jobs:
            job.result()
    for number in range(pages):
        with file.page(number) as after:
            assert after.array("<i8")[0] == changed[number]
    assert sum(changed) > 0
    assert file.pool.borrowed() == []


def test_borrow_and_release_in_many_threads(file: PoolFile) -> None:
    def work(start: int) -> None:
        for turn in range(2000):
            number = (start * 7 + turn * 3) % (len(file) - 1)
            with file.page(number) as page:
                assert page.data[:8] == (number * PAGE).to_bytes(8, "little")

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    assert file.pool.borrowed() == []
    assert file.pool.statistics().borrowed == 0


def test_a_borrow_may_end_in_another_thread(file: PoolFile) -> None:
    page = file.page(1)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(page.release).result()
    assert file.pool.borrowed() == []


def test_close_while_others_borrow(pool: zcfs.BufferPool, path: Path) -> None:
    """A call finds the file open or closed, and what it borrowed stays valid."""
    for _ in range(20):
        file = pool.open(path, PAGE)
        started = threading.Barrier(3)

        def work(file: PoolFile = file, started: threading.Barrier = started) -> None:
            started.wait()
            for turn in range(100_000):
                number = turn % 30
                try:
                    with file.page(number) as page:
                        assert page.data[:8] == (number * PAGE).to_bytes(8, "little")
                except ValueError:
                    return

        with ThreadPoolExecutor(2) as threads:
            jobs = [threads.submit(work) for _ in range(2)]
            started.wait()
            file.close()
            for job in jobs:
                job.result()
    assert pool.borrowed() == []


def test_half_of_the_pool_at_most(pool: zcfs.BufferPool, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as out:
        out.truncate(64 << 20)
    with pool.open(path, 65536) as file:
        with pytest.raises(zcfs.BorrowError, match="half of the pool"), file.pages(range(1024)):
            pass
        assert pool.borrowed() == []
        statistics = pool.statistics()
        assert statistics.borrowed == 0
        with file.pages(range(statistics.borrow_limit // 65536)) as pages:
            assert pool.statistics().borrowed == statistics.borrow_limit == len(pages) * 65536
        assert sum(1 for _ in file.pages(range(1024))) == 1024
        assert sum(run.size for run in file.pages(range(1024)).runs()) == 64 << 20
