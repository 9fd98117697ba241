"""The objects that borrowed pages are: references, views, threads, and what they refuse."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import SupportsIndex

import numpy
import pytest

import zcfs
from zcfs.pool import PageMut, PageRef, PageRun, PoolFile

from .conftest import PAGE, PAGES, TAIL


def test_references_come_out_even(file: PoolFile) -> None:
    before = sys.getrefcount(file), sys.getrefcount(PageRef), sys.getrefcount(PageMut)
    pages = [file.page(n % 8) for n in range(100)]
    assert sys.getrefcount(file) == before[0] + 100
    views = [page.data for page in pages]
    for page in pages:
        with page as same:
            assert same is page
    change = file.page_mut(20)
    change.release()
    del pages, page, same, change
    assert len(views) == 100
    assert (sys.getrefcount(file), sys.getrefcount(PageRef), sys.getrefcount(PageMut)) == before


def test_memory_does_not_grow(file: PoolFile) -> None:
    def work() -> None:
        for n in range(2000):
            with file.page(n % 30) as page:
                page.data[:8].tobytes()
            for use in (lambda: file.page(PAGES), lambda p=page: p.data):
                with pytest.raises((IndexError, zcfs.BorrowError)):
                    use()
        sum(run.pages for run in file.pages(range(len(file))).runs())

    work()
    gc.collect()
    before = sys.getallocatedblocks()
    work()
    gc.collect()
    assert sys.getallocatedblocks() < before + 200


def test_each_look_is_a_view_of_the_same_bytes(file: PoolFile) -> None:
    with file.page(3) as page:
        one, two = page.data, page.data
        one.release()
        assert two[:8] == (3 * PAGE).to_bytes(8, "little") == page.data[:8]
        assert two.obj is page.data.obj
        del two
    assert file.pool.statistics().leaked == 0


def test_a_released_view_lets_go(file: PoolFile) -> None:
    with file.page(3) as page:
        view = page.data
    assert file.pool.statistics().leaked == 1
    view.release()
    assert file.pool.statistics().leaked == 0
    assert file.pool.borrowed() == []


def test_no_new_look_after_the_end(file: PoolFile) -> None:
    """What the views refer to gives buffers as long as it lives; the page itself no more."""
    with file.page(3) as page:
        old = page.data
    with pytest.raises(zcfs.BorrowError, match="has ended"):
        page.data  # noqa: B018
    frames = old.obj
    old.release()
    again = memoryview(frames)
    assert again.readonly
    assert again[:8] == (3 * PAGE).to_bytes(8, "little")
    del frames
    assert file.pool.statistics().leaked == 1
    del again
    assert file.pool.statistics().leaked == 0


def test_an_array_that_keeps_no_buffer_keeps_the_frame(file: PoolFile) -> None:
    """numpy gives the buffer back at once and keeps what gave it: that has to be the borrow."""
    with file.page(3) as page:
        array: numpy.ndarray = numpy.ndarray((4,), "<i8", buffer=page.data)
    assert file.pool.statistics().leaked == 1
    assert file.pool.borrowed() == [(file.path, 3, 1)]
    assert array[0] == 3 * PAGE
    del array
    assert file.pool.borrowed() == []


def test_only_an_exclusive_borrow_is_writable(file: PoolFile) -> None:
    with file.page(3) as page, pytest.raises((TypeError, ValueError, BufferError)):
        numpy.frombuffer(page.data, "<i8")[0] = 1
    with file.page_mut(3) as change:
        assert not change.data.readonly
        numpy.frombuffer(change.data, "<i8")[0] = 1


def test_they_are_made_by_a_file_alone(file: PoolFile) -> None:
    with file.page(3) as page:
        frames = type(page.data.obj)
        for kind in (PageRef, PageRun, PageMut, frames):
            with pytest.raises(TypeError):
                kind()
        with pytest.raises(ValueError, match="once"):
            file.__init__(file.pool, file._file, file.path, PAGE, False)  # type: ignore[misc]


@pytest.mark.parametrize("kind", [PageRef, PageRun, PageMut])
def test_no_subclasses(kind: type) -> None:
    with pytest.raises(TypeError, match="subclass"):
        type("Mine", (kind,), {})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickles_and_no_copies(file: PoolFile, protocol: int) -> None:
    with file.page(3) as page:
        for attempt in (lambda: pickle.dumps(page, protocol), lambda: copy.copy(page)):
            with pytest.raises(TypeError, match="copied or pickled"):
                attempt()
        with pytest.raises(TypeError):
            pickle.dumps(page.data.obj, protocol)
    assert file.pool.borrowed() == []


@pytest.mark.parametrize("name", ["data", "file", "number", "size", "version", "address", "other"])
def test_nothing_can_be_set(file: PoolFile, name: str) -> None:
    with file.page(3) as page, pytest.raises(AttributeError):
        setattr(page, name, 1)


def test_numbers_of_any_kind(file: PoolFile) -> None:
    numbers: list[SupportsIndex] = [numpy.int64(3), numpy.uint8(3), 3]
    for number in numbers:
        with file.page(number) as page:
            assert page.number == 3
    for bad in (3.0, "3", None):
        with pytest.raises(TypeError):
            file.page(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        file.page()  # type: ignore[call-arg]


def test_a_cycle_through_a_page_is_collected(path: Path) -> None:
    with zcfs.BufferPool("8MiB") as pool:
        file = pool.open(path, PAGE)
        file.mine = file.page(3)  # type: ignore[attr-defined]
        assert len(pool.borrowed()) == 1
        del file
        gc.collect()
        assert pool.borrowed() == []
        assert pool.statistics().borrowed == 0


def test_a_page_is_ended_once_by_many_threads(file: PoolFile) -> None:
    for _ in range(50):
        page, start = file.page(3), threading.Barrier(4)

        def end(page: PageRef = page, start: threading.Barrier = start) -> None:
            start.wait()
            page.release()

        with ThreadPoolExecutor(4) as threads:
            for job in [threads.submit(end) for _ in range(4)]:
                job.result()
        assert file.pool.borrowed() == []


def test_views_that_go_in_other_threads(file: PoolFile) -> None:
    """Half of the threads look longer than the block; the count ends at nothing."""

    def work(start: int) -> None:
        kept: list[memoryview] = []
        for turn in range(1000):
            with file.page((start + turn) % 30) as page:
                kept.append(page.data[:8])
            if len(kept) > 5:
                kept.pop(0)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert file.pool.statistics().leaked == 0
    assert file.pool.borrowed() == []


def test_a_view_that_goes_while_the_page_is_written(file: PoolFile) -> None:
    for turn in range(50):
        page = file.page_mut(3)
        page.data[:8] = turn.to_bytes(8, "little")
        views, start = [page.data], threading.Barrier(2)

        def drop(views: list[memoryview] = views, start: threading.Barrier = start) -> None:
            start.wait()
            views.clear()

        with ThreadPoolExecutor(1) as thread:
            job = thread.submit(drop)
            start.wait()
            page.__exit__(None, None, None)
            job.result()
        with file.page(3) as after:
            assert after.data[:8] == turn.to_bytes(8, "little")
    assert file.pool.statistics().leaked == 0
    assert file.pool.borrowed() == []


def test_a_page_that_is_not_there_is_waited_for_without_the_lock(file: PoolFile) -> None:
    """Other threads run while one page after the other is read from the disk."""
    seen, stop = 0, threading.Event()

    def other() -> None:
        nonlocal seen
        while not stop.wait(0):
            seen += 1

    with ThreadPoolExecutor(1) as thread:
        job = thread.submit(other)
        for number in range(PAGES):
            with file.page(number) as page:
                assert page.size == (PAGE if number < PAGES - 1 else TAIL)
        stop.set()
        job.result()
    assert file.pool.statistics().misses + file.pool.statistics().readahead >= PAGES
    assert seen > 0
