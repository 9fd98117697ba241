"""SQLite on a database that lies on the mount, on its source, and on both at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .harness import Mode, Mount
from .linux import Child, child, run_child

JOURNALS = ["delete", "persist", "wal"]
ONE_SIDED = "the WAL index is shared memory: only passthrough shares it with the source"


@contextlib.contextmanager
def database(path: Path, timeout: float = 30.0) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None)
    try:
        yield connection
    except sqlite3.Error as error:
        error.add_note(getattr(error, "sqlite_errorname", ""))
        raise
    finally:
        connection.close()


def create(path: Path, journal: str) -> None:
    with database(path) as db:
        assert db.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal,)
        db.execute("CREATE TABLE counter (n INTEGER)")
        db.execute("INSERT INTO counter VALUES (0)")
        db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, who INTEGER, data BLOB)")
        db.execute("CREATE INDEX by_who ON rows (who, data)")


def integrity(path: Path) -> str:
    with database(path) as db:
        return str(db.execute("PRAGMA integrity_check").fetchone()[0])


def write_rows(path: Path, who: int, turns: int) -> None:
    """Transactions of rows and of one step of the counter each."""
    with database(path) as db:
        for turn in range(turns):
            db.execute("BEGIN IMMEDIATE")
            blob = bytes([who]) * (100 + turn * 37 % 3000)
            db.executemany("INSERT INTO rows (who, data) VALUES (?, ?)", [(who, blob)] * 5)
            db.execute("DELETE FROM rows WHERE who = ? AND id % 7 = ?", (who, turn % 7))
            db.execute("UPDATE counter SET n = n + 1")
            db.execute("COMMIT")


@pytest.mark.parametrize("journal", JOURNALS)
def test_writers_on_the_mount(mount: Callable[..., Mount], journal: str) -> None:
    mounted = mount()
    path = mounted.path / "db"
    create(path, journal)
    for worker in [Child(write_rows, path, who, 15) for who in range(4)]:
        worker.result()
    for side in (mounted.path, mounted.source):
        assert integrity(side / "db") == "ok"
        with database(side / "db") as db:
            assert db.execute("SELECT n FROM counter").fetchone() == (60,)


@pytest.mark.parametrize("journal", JOURNALS)
def test_mount_and_source_exclude_each_other(
    mount: Callable[..., Mount], mode: Mode, journal: str
) -> None:
    if journal == "wal" and mode.engine != "kernel":
        pytest.skip(ONE_SIDED)
    mounted = mount()
    create(mounted.path / "db", journal)

    def blocked(path: Path) -> str:
        with database(path, timeout=0) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                return str(error)
        return "not excluded"

    sides = [mounted.path / "db", mounted.source / "db"]
    for turn, (mine, other) in enumerate((sides, sides[::-1])):
        with database(mine) as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE counter SET n = n + 1")
            assert run_child(blocked, other) == "database is locked"
            db.execute("COMMIT")
        with database(other) as db:
            assert db.execute("SELECT n FROM counter").fetchone() == (turn + 1,)


@pytest.mark.parametrize("journal", JOURNALS)
def test_writers_on_mount_and_source(mount: Callable[..., Mount], mode: Mode, journal: str) -> None:
    """At the same time, each with its connection open all the while: nothing is lost."""
    if journal == "wal" and mode.engine != "kernel":
        pytest.skip(ONE_SIDED)
    mounted = mount()
    create(mounted.path / "db", journal)
    sides = (mounted.path, mounted.source) * 2
    workers = [Child(write_rows, side / "db", who, 15) for who, side in enumerate(sides)]
    for worker in workers:
        worker.result()
    for side in (mounted.path, mounted.source):
        assert integrity(side / "db") == "ok"
        with database(side / "db") as db:
            assert db.execute("SELECT n FROM counter").fetchone() == (60,)


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_killed_writer_is_rolled_back(mount: Callable[..., Mount], journal: str) -> None:
    """A writer dies in the middle of a transaction that is partly on disk."""
    mounted = mount()
    path = mounted.path / "db"
    create(path, journal)
    ready, ready_in = os.pipe()

    def work() -> None:
        with database(path) as db:
            db.execute("PRAGMA cache_size=2")
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE counter SET n = 99")
            for at in range(200):
                db.execute("INSERT INTO rows (who, data) VALUES (?, ?)", (at, bytes(2000)))
            os.write(ready_in, b"x")
            signal.pause()

    with child(work):
        os.close(ready_in)
        assert os.read(ready, 1) == b"x"
    os.close(ready)
    for side in (mounted.source, mounted.path):
        assert integrity(side / "db") == "ok"
        with database(side / "db") as db:
            assert db.execute("SELECT n, (SELECT count(*) FROM rows) FROM counter").fetchone() == (
                0,
                0,
            )
