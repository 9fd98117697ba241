"""Reads and changes through the pool against a bytearray, in any order."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import zcfs
from zcfs.pool import PageRef

PAGE = 4096
PAGES = 24


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        path = Path(self.directory.name, "data")
        self.model = bytearray(bytes(range(251)) * (PAGES * PAGE // 251))
        self.pages = -(-len(self.model) // PAGE)
        path.write_bytes(self.model)
        self.path = path
        self.pool = zcfs.BufferPool("8MiB", PAGE)
        self.file = self.pool.open(path, writable=True)
        self.held: list[tuple[PageRef, bytes]] = []
        self.views: list[tuple[memoryview, bytes]] = []

    def expect(self, number: int) -> bytes:
        return bytes(self.model[number * PAGE : (number + 1) * PAGE])

    def looked_at(self, number: int) -> bool:
        return any(n == number for _, n, _ in self.pool.borrowed())

    numbers = st.integers(0, PAGES - 1)

    @rule(number=numbers)
    def read(self, number: int) -> None:
        with self.file.page(number) as page:
            assert page.data == self.expect(number)

    @rule(number=numbers)
    def hold(self, number: int) -> None:
        page = self.file.page(number)
        assert page.data == self.expect(number)
        self.held.append((page, self.expect(number)))

    @precondition(lambda self: self.held)
    @rule(keep=st.booleans(), at=st.integers(0, 100))
    def let_go(self, keep: bool, at: int) -> None:
        page, want = self.held.pop(at % len(self.held))
        view = page.data[10:90]
        page.release()
        if keep:
            self.views.append((view, want[10:90]))

    @precondition(lambda self: self.views)
    @rule(at=st.integers(0, 100))
    def drop_view(self, at: int) -> None:
        self.views.pop(at % len(self.views))

    @rule(number=numbers, at=st.integers(0, PAGE), fill=st.binary(max_size=200), fail=st.booleans())
    def change(self, number: int, at: int, fill: bytes, fail: bool) -> None:
        busy = self.looked_at(number)
        try:
            with self.file.page_mut(number) as page:
                assert not busy
                fill = fill[: max(0, len(page.data) - at)]
                page.data[at : at + len(fill)] = fill
                if fail:
                    raise KeyError
        except zcfs.BorrowError:
            assert busy
        except KeyError:
            pass
        else:
            self.model[number * PAGE + at : number * PAGE + at + len(fill)] = fill

    @rule(first=numbers, count=st.integers(0, PAGES))
    def run(self, first: int, count: int) -> None:
        numbers = range(first, min(self.pages, first + count))
        got = b"".join(run.data for run in self.file.pages(numbers).runs())
        assert got == self.model[first * PAGE : (first + len(numbers)) * PAGE]

    @rule(numbers=st.lists(numbers, max_size=40))
    def batch(self, numbers: list[int]) -> None:
        with self.file.pages(numbers) as pages:
            for page in pages:
                assert page.data == self.expect(page.number)

    @rule()
    def reopen(self) -> None:
        self.file.close()
        self.file = self.pool.open(self.path, writable=True)

    @invariant()
    def what_is_held_stays(self) -> None:
        for page, want in self.held:
            assert page.data == want
        for view, want in self.views:
            assert view == want

    @invariant()
    def the_disk_has_it(self) -> None:
        assert self.path.read_bytes() == self.model

    def teardown(self) -> None:
        self.held.clear()
        self.views.clear()
        assert self.pool.borrowed() == []
        assert self.pool.statistics().leaked == 0
        self.pool.close()
        self.directory.cleanup()


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_model = PoolMachine.TestCase
