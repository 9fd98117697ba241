"""What looks at a page keeps its frame: after the block, the file, and the pool."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
from pathlib import Path

import numpy
import pytest

import zcfs
from zcfs.pool import PoolFile

from .conftest import PAGE, PAGES, TAIL


def address(view: memoryview) -> int:
    return int(numpy.frombuffer(view, numpy.uint8).__array_interface__["data"][0])


def word(number: int) -> bytes:
    return (number * PAGE).to_bytes(8, "little")


def read_everything(file: PoolFile) -> None:
    """Push all else out of the pool's frames."""
    other = Path(file.path).with_name("other")
    with other.open("wb") as out:
        out.truncate(64 << 20)
    with file.pool.open(other, PAGE) as large:
        for page in large.pages(range(len(large))):
            assert page.data[:8] == bytes(8)


def test_data_is_the_frame(file: PoolFile) -> None:
    with file.page(7) as page:
        assert page.data.readonly
        assert address(page.data) == page.address
        assert page.address % PAGE == 0
        assert page.array("<i8").__array_interface__["data"] == (page.address, True)
        assert address(page.data[100:200]) == page.address + 100
        with pytest.raises(TypeError):
            page.data[0] = 1
    assert file.pool.statistics().leaked == 0


@pytest.mark.parametrize(
    "look",
    [
        lambda page: page.data,
        lambda page: page.data[8:],
        lambda page: page.data.cast("Q")[:2],
        lambda page: page.array("<i8"),
        lambda page: page.array("<i8")[::3].reshape(-1, 1),
        lambda page: page.records([("a", "<i4"), ("b", "<i4")])["b"],
        lambda page: numpy.frombuffer(page.data[16:], "<u2"),
    ],
    ids=["data", "slice", "cast", "array", "array of array", "field", "frombuffer"],
)
def test_a_view_keeps_the_frame(file: PoolFile, look) -> None:  # type: ignore[no-untyped-def]
    with file.page(2) as page:
        view = look(page)
        before = bytes(view)
    assert file.pool.statistics().leaked == 1
    assert file.pool.borrowed() == [(file.path, 2, 1)]
    with pytest.raises(zcfs.BorrowError):
        file.page_mut(2)
    read_everything(file)
    assert bytes(view) == before
    del view
    assert file.pool.statistics().leaked == 0
    assert file.pool.borrowed() == []


def test_the_last_of_several_views_ends_it(file: PoolFile) -> None:
    with file.page(2) as page:
        views = [page.data[i : i + 8] for i in range(5)]
    while views:
        assert file.pool.statistics().leaked == 1
        views.pop()
    assert file.pool.statistics().leaked == 0


def test_a_cycle_of_garbage_ends_it(file: PoolFile) -> None:
    with file.page(2) as page:
        loop: list[object] = [page, page.data]
        loop.append(loop)
    del page
    assert file.pool.statistics().leaked == 1
    del loop
    gc.collect()
    assert file.pool.statistics().leaked == 0


def test_without_a_block(file: PoolFile) -> None:
    data = file.page(4).data
    read_everything(file)
    assert data[:8] == word(4)
    assert file.pool.borrowed() == [(file.path, 4, 1)]
    del data
    assert file.pool.borrowed() == []
    file.page(4)
    assert file.pool.borrowed() == []


def test_an_ended_borrow_says_so(file: PoolFile) -> None:
    with file.page(4) as page:
        pass
    page.release()
    for use in ("data", "version", "address"):
        with pytest.raises(zcfs.BorrowError, match="has ended"):
            getattr(page, use)
    assert "ended" in repr(page)


def test_after_an_exception(file: PoolFile) -> None:
    with pytest.raises(KeyError), file.page(4) as page:
        raise KeyError
    assert file.pool.borrowed() == []
    assert page.number == 4


def test_borrows_outlive_the_file_and_the_pool(path: Path) -> None:
    pool = zcfs.BufferPool("8MiB")
    file = pool.open(path)
    with file.page(6) as page:
        view = page.data
    array = file.page(7).array("<i8")
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.page(6)
    with pytest.warns(ResourceWarning, match="memory stays for what is borrowed"):
        pool.close()
    pool.close()
    del pool, file, page
    gc.collect()
    assert view[:8] == word(6)
    assert array[0] == 7 * PAGE
    del view
    assert array[1] == 7 * PAGE + 8


def test_the_arena_goes_with_the_last_view(path: Path) -> None:
    def mapped() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize"))

    pool = zcfs.BufferPool("1GiB")
    with pool.open(path) as file, file.page(6) as page:
        view = page.data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pool.close()
    del pool, file, page
    gc.collect()
    before = mapped()
    assert view[:8] == word(6)
    del view
    assert mapped() <= before - (1 << 30)


def test_views_may_be_there_when_the_interpreter_ends(path: Path) -> None:
    program = f"""
import zcfs
pool = zcfs.BufferPool("8MiB")
file = pool.open({str(path)!r})
data = file.page(3).data
array = file.page(4).array("<i8")
cycle = [pool, file, data, file.page(5)]
cycle.append(cycle)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_in_the_child_of_a_fork_the_pool_is_closed(path: Path) -> None:
    program = f"""
import os, zcfs
pool = zcfs.BufferPool("8MiB")
file = pool.open({str(path)!r}, writable=True)
page, change = file.page(3), file.page_mut(4)
child = os.fork()
if child == 0:
    for use in (lambda: file.page(5), lambda: pool.statistics(), lambda: file.gather([0], 0, "b")):
        try:
            use()
        except ValueError as error:
            assert "closed" in str(error)
        else:
            raise AssertionError
    del change
else:
    assert os.waitpid(child, 0)[1] == 0
    page.release()
    change.release()
    assert pool.borrowed() == []
    pool.close()
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_zcfs_leaves_the_pool_and_numpy_out() -> None:
    program = "import sys, zcfs; print([m for m in sys.modules if m in ('numpy', 'zcfs.pool')])"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_the_end_of_the_file(file: PoolFile) -> None:
    assert len(file) == PAGES
    assert file.size == (PAGES - 1) * PAGE + TAIL
    with file.page(PAGES - 1) as page:
        assert page.size == len(page.data) == TAIL
    with pytest.raises(IndexError):
        file.page(PAGES)
    with Path(file.path).open("ab") as out:
        out.write(b"x" * PAGE)
    with file.page(PAGES - 1) as page:
        assert page.size == PAGE
        assert page.data[TAIL:] == b"x" * (PAGE - TAIL)
    with file.page(PAGES) as page:
        assert bytes(page.data) == b"x" * TAIL


@pytest.mark.parametrize("size", [0, 1, 511, 4096, PAGE, PAGE + 1])
def test_small_files(pool: zcfs.BufferPool, tmp_path: Path, size: int) -> None:
    path = tmp_path / "small"
    path.write_bytes(bytes(range(256)) * (size // 256 + 1))
    with path.open("rb+") as out:
        out.truncate(size)
    with pool.open(path, PAGE) as file:
        assert len(file) == -(-size // PAGE)
        assert b"".join(page.data for page in file.pages(range(len(file)))) == path.read_bytes()
        with pytest.raises(IndexError):
            file.page(len(file))


def test_a_hole(pool: zcfs.BufferPool, tmp_path: Path) -> None:
    path = tmp_path / "hole"
    with path.open("wb") as out:
        out.seek(3 * PAGE + 5000)
        out.write(b"end")
    with pool.open(path, PAGE) as file:
        assert b"".join(run.data for run in file.pages(range(4)).runs()) == path.read_bytes()
