"""The examples do what they say; by address."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import zcfs

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["parse_query", "scan_records"])
def test_it_runs(name: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])


def test_parse_query_copies_nothing(pool: zcfs.BufferPool, tmp_path: Path) -> None:
    """Every view of the query lies in the frame of its page, where the file has the word."""
    example = load("parse_query")
    path = example.make_file(tmp_path / "queries")
    with pool.open(path, example.PAGE_SIZE) as file:
        with file.page(5) as page:
            start = page.address
            query = example.parse_query(page.data)
        text = path.read_bytes()[5 * example.PAGE_SIZE :][: example.PAGE_SIZE]
        views = {b"id": query.columns[0], b"name": query.columns[1], b"balance": query.columns[2]}
        views |= {b"accounts": query.table, b"id =": query.column, b"5": query.value}
        for word, view in views.items():
            assert word.startswith(bytes(view))
            where = text.rindex(word) if word == b"id =" else text.index(word)
            assert address(view) == start + where
            assert view.readonly
        assert pool.statistics().leaked == 1
        assert pool.statistics().bytes_copied == 0
        del query, views, view
        assert pool.statistics().leaked == 0


def test_parse_query_wants_a_query() -> None:
    example = load("parse_query")
    for text in (b"", b"DELETE FROM accounts;", b"SELECT FROM;", b"SELECT a FROM b"):
        with pytest.raises(ValueError, match="no query"):
            example.parse_query(memoryview(text))
    assert example.parse_query(memoryview(b"SELECT a FROM b;")).value is None


def test_scan_records_sums(pool: zcfs.BufferPool, tmp_path: Path) -> None:
    example = load("scan_records")
    path = example.make_file(tmp_path / "records", 32 << 20)
    want = int(np.fromfile(path, example.RECORD)["amount"].sum())
    with pool.open(path, example.PAGE_SIZE) as file:
        assert example.column_sum(file, "amount") == want
        assert pool.statistics().bytes_copied == 0
        assert pool.borrowed() == []
