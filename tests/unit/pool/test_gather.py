"""file.gather against struct, page.array and page.records against numpy over the bytes."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zcfs
from zcfs.pool import PoolFile, arrays

from .conftest import PAGE, PAGES, TAIL, content

DATA = content()


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_gather_is_struct_unpack(file: PoolFile, data: st.DataObject) -> None:
    code = data.draw(st.sampled_from(["<b", "<H", ">i", "<q", "<d", "<f"]))
    item = struct.calcsize(code)
    place = st.integers(0, PAGES - 2).flatmap(
        lambda page: st.tuples(st.just(page), st.integers(0, PAGE - item))
    )
    last = st.tuples(st.just(PAGES - 1), st.integers(0, TAIL - item))
    places = data.draw(st.lists(place | last, max_size=600))
    got = file.gather([p for p, _ in places], [o for _, o in places], code)
    want = b"".join(DATA[p * PAGE + o :][:item] for p, o in places)
    assert got.tobytes() == want
    assert file.pool.borrowed() == []


def test_shapes(file: PoolFile) -> None:
    assert file.gather(3, 8, "<q").shape == ()
    assert file.gather(3, 8, "<q") == 3 * PAGE + 8
    assert file.gather([1, 2], 0, "<q").tolist() == [PAGE, 2 * PAGE]
    assert file.gather(1, [0, 16], "<q").tolist() == [PAGE, PAGE + 16]
    got = file.gather([[1], [2]], [0, 8, 16], "<q")
    assert got.tolist() == [[PAGE, PAGE + 8, PAGE + 16], [2 * PAGE, 2 * PAGE + 8, 2 * PAGE + 16]]
    assert file.gather([], [], "<q").shape == (0,)
    assert file.gather(np.arange(6, dtype=np.int16)[::2], 0, "S3").dtype == "S3"
    record = np.dtype([("a", "<q"), ("b", "<q")])
    assert file.gather([4], 64, record)["b"][0] == 4 * PAGE + 72


@pytest.mark.parametrize(
    ("pages", "offsets", "error"),
    [
        ([0, PAGES], 0, IndexError),
        ([-1], 0, IndexError),
        ([0, 1], [0, PAGE - 7], ValueError),
        ([0], -8, ValueError),
        ([0], 2**63, ValueError),
        ([PAGES - 1], TAIL - 7, ValueError),
    ],
)
def test_what_is_not_there(
    file: PoolFile, pages: list[int], offsets: int | list[int], error: type[Exception]
) -> None:
    with pytest.raises(error):
        file.gather(pages, offsets, "<q")
    assert file.pool.borrowed() == []


def test_more_pages_than_may_be_borrowed(tmp_path: Path) -> None:
    path = tmp_path / "many"
    size = 32 << 20
    words = np.arange(size // 8, dtype="<i8")
    path.write_bytes(words.tobytes())
    with zcfs.BufferPool("8MiB") as pool, pool.open(path, 65536) as file:
        pages = np.random.default_rng(1).integers(0, size // 65536, 5000)
        assert (file.gather(pages, 24, "<q") == pages * 8192 + 3).all()
        with file.pages(range(pool.statistics().borrow_limit // 65536)):
            assert (file.gather(pages, 24, "<q") == pages * 8192 + 3).all()


def test_objects_have_no_bytes(file: PoolFile) -> None:
    for dtype in (object, "S0"):
        with pytest.raises(ValueError):
            file.gather([0], 0, dtype)


def test_arrays(file: PoolFile) -> None:
    with file.page(2) as page:
        want = np.frombuffer(DATA[2 * PAGE : 3 * PAGE], "<i8")
        assert (page.array("<i8") == want).all()
        assert (page.array("<i8", offset=8, stride=64) == want[1::8]).all()
        assert (page.array("<i8", offset=8, count=3, stride=64) == want[1:25:8]).all()
        assert page.array("<i8", offset=PAGE).shape == (0,)
        assert page.array("<i8", offset=PAGE - 8).shape == (1,)
        for bad in ({"offset": -1}, {"stride": 0}, {"count": -1}, {"count": PAGE // 8 + 1}):
            with pytest.raises(ValueError):
                page.array("<i8", **bad)
    assert file.pool.statistics().leaked == 0


class Pair(ctypes.Structure):
    _fields_ = (("a", ctypes.c_int32), ("b", ctypes.c_int64))


def test_records(file: PoolFile) -> None:
    with file.page(2) as page:
        want = np.frombuffer(DATA[2 * PAGE : 3 * PAGE], [("a", "<i4"), ("_", "<i4"), ("b", "<i8")])
        layouts: list[Any] = [
            [("a", "<i4"), ("_", "<i4"), ("b", "<i8")],
            {"names": ["a", "b"], "formats": ["<i4", "<i8"], "offsets": [0, 8], "itemsize": 16},
            Pair,
        ]
        for layout in layouts:
            got = page.records(layout)
            assert (got["b"] == want["b"]).all()
            assert (got["a"] == want["a"]).all()
            assert got.__array_interface__["data"][0] == page.address
        assert (page.records(struct.Struct("<i4xq"))["f1"] == want["b"]).all()
        del got


@pytest.mark.parametrize("code", ["<bhiqBHIQ", "@bqhd", "!2h3sxI?", ">4sf2xd", "=e", "@ci"])
def test_struct_layouts(code: str) -> None:
    layout = struct.Struct(code)
    raw = bytes(range(1, layout.size * 3 + 1))
    got = np.frombuffer(raw, arrays.struct_dtype(layout))
    for record, want in zip(got, layout.iter_unpack(raw), strict=True):
        assert record.tobytes() == record.tobytes()
        np.testing.assert_equal(record.item(), want)


def test_no_struct_layout() -> None:
    with pytest.raises(ValueError, match="no numpy type"):
        arrays.struct_dtype(struct.Struct("<3p"))


def test_without_numpy(file: PoolFile, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "numpy", None)
    monkeypatch.setattr(arrays, "_numpy", None)
    with file.page(1) as page:
        assert struct.unpack_from("<q", page.data, 8) == (PAGE + 8,)
        with pytest.raises(ImportError, match=r"zcfs\[numpy\]"):
            page.array("<i8")
    with pytest.raises(ImportError, match="numpy"):
        file.gather([0], 0, "<i8")
