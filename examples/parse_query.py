#!/usr/bin/env python3
"""A parser that borrows: what it returns are views into the page, nothing is copied.

    examples/parse_query.py [FILE [PAGE]]

In Rust it would be `fn parse_query<'a>(buf: &'a [u8]) -> Query<'a>`, and the compiler would see to
it that no Query outlives its buffer. Here the views keep the page's frame for as long as they live,
and the pool counts them. Without FILE it makes one, with a query at the beginning of each page.
"""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import zcfs

PAGE_SIZE = 4096
QUERY = re.compile(
    rb"\s*SELECT\s+(?P<columns>\w+(?:\s*,\s*\w+)*)\s+FROM\s+(?P<table>\w+)"
    rb"(?:\s+WHERE\s+(?P<column>\w+)\s*=\s*(?P<value>\d+|'[^']*'))?\s*;"
)
WORD = re.compile(rb"\w+")


@dataclass(frozen=True, slots=True)
class Query:
    """A query, as views into the buffer that it was parsed from."""

    columns: tuple[memoryview, ...]
    table: memoryview
    column: memoryview | None  # of WHERE
    value: memoryview | None


def parse_query(buffer: memoryview) -> Query:
    """Parse the query at the beginning of `buffer`; ValueError if there is none."""
    match = QUERY.match(buffer)
    if match is None:
        raise ValueError("no query")
    columns = WORD.finditer(buffer, *match.span("columns"))
    return Query(
        columns=tuple(buffer[slice(*word.span())] for word in columns),
        table=buffer[slice(*match.span("table"))],
        column=buffer[slice(*match.span("column"))] if match["column"] else None,
        value=buffer[slice(*match.span("value"))] if match["value"] else None,
    )


def make_file(path: Path) -> Path:
    queries = [b"SELECT id, name , balance FROM accounts WHERE id = %d;" % i for i in range(8)]
    path.write_bytes(b"".join(query.ljust(PAGE_SIZE, b"\0") for query in queries))
    return path


def show(path: Path, number: int) -> None:
    with zcfs.BufferPool("8MiB") as pool, pool.open(path, PAGE_SIZE) as file:
        with file.page(number) as page:
            query = parse_query(page.data)
            words = [*query.columns, query.table, query.column, query.value]
            print("views of", page, "at", hex(page.address))
            print([bytes(word).decode() for word in words if word is not None])
        print("still borrowed by the query:", pool.statistics().leaked, "page")
        del query, words
        print("and without it:", pool.statistics().leaked)


def main(arguments: list[str]) -> None:
    number = int(arguments[1]) if len(arguments) > 1 else 3
    if arguments:
        show(Path(arguments[0]), number)
        return
    with tempfile.TemporaryDirectory() as directory:
        show(make_file(Path(directory, "queries")), number)


if __name__ == "__main__":
    main(sys.argv[1:])
