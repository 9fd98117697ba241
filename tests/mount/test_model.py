"""Random operations on one file, against a model: two handles in different modes, and the source.

The model is a bytearray. Every read must agree with it, through whichever handle; at the end the
file is compared through the mount and in place. The operations are the same in every run; a failure
is shrunk to the shortest list that shows it.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from .harness import Mount
from .linux import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fallocate
from .posix import pattern

LIMIT, BLOCK = 200_000, 4096
FLAGS = {
    "cached": os.O_RDWR,
    "direct": os.O_RDWR | os.O_DIRECT,
    "append": os.O_RDWR | os.O_APPEND,
    "mapped": os.O_RDWR,
}
_seeds = itertools.count(1)


@dataclass
class Handle:
    """An open file in one way of I/O."""

    path: Path
    kind: str
    fd: int = -1
    memory: mmap.mmap | None = None

    def __post_init__(self) -> None:
        self.fd = os.open(self.path, FLAGS[self.kind])

    def mapping(self, size: int) -> mmap.mmap:
        if self.memory is None or len(self.memory) < size:
            self.unmap()
            self.memory = mmap.mmap(self.fd, size)
        return self.memory

    def unmap(self) -> None:
        if self.memory is not None:
            self.memory.close()
            self.memory = None

    def close(self) -> None:
        self.unmap()
        os.close(self.fd)


@dataclass
class World:
    """The file, its model, and two handles."""

    directory: Path
    source: Path
    name: str = "f"
    model: bytearray = field(default_factory=bytearray)
    handles: list[Handle] = field(default_factory=list)

    def begin(self, kinds: tuple[str, str]) -> None:
        path = self.directory / self.name
        path.write_bytes(b"")
        self.handles = [Handle(path, kind) for kind in kinds]

    def end(self) -> None:
        for handle in self.handles:
            handle.close()

    # operations: each takes the handle's number and two numbers below LIMIT

    def write(self, which: int, at: int, length: int) -> None:
        handle, data = self.handles[which], pattern(length, next(_seeds) & 0xFFFFFF)
        if handle.kind == "append":
            at = len(self.model)
            assert os.write(handle.fd, data) == length
        elif handle.kind == "direct":
            at, data = at // BLOCK * BLOCK, pattern(max(BLOCK, length // BLOCK * BLOCK), length)
            with page_aligned(len(data)) as buffer:
                buffer[:] = data
                assert os.pwritev(handle.fd, [buffer], at) == len(data)
        elif handle.kind == "mapped" and self.model:
            at %= len(self.model)
            data = data[: len(self.model) - at]
            handle.mapping(len(self.model))[at : at + len(data)] = data
        else:
            assert os.pwrite(handle.fd, data, at) == length
        if data:
            self.grow(at + len(data))
            self.model[at : at + len(data)] = data

    def read(self, which: int, at: int, length: int) -> None:
        handle = self.handles[which]
        if handle.kind == "direct":
            at, length = at // BLOCK * BLOCK, length // BLOCK * BLOCK + BLOCK
            with page_aligned(length) as buffer:
                got = bytes(buffer[: os.preadv(handle.fd, [buffer], at)])
        elif handle.kind == "mapped" and self.model:
            length = min(length, len(self.model) - min(at, len(self.model)))
            got = handle.mapping(len(self.model))[at : at + length]
        else:
            got = os.pread(handle.fd, length, at)
        self.same(got, at, length)

    def truncate(self, which: int, at: int, _: int) -> None:
        for handle in self.handles:
            handle.unmap()  # a page beyond the end would be a bus error
        os.ftruncate(self.handles[which].fd, at)
        self.grow(at)
        del self.model[at:]

    def truncate_by_open(self, which: int, _: int, length: int) -> None:
        if length % 4 == 0:
            self.truncate(which, 0, 0)
            os.close(os.open(self.handles[which].path, os.O_WRONLY | os.O_TRUNC))

    def punch(self, which: int, at: int, length: int) -> None:
        fallocate(self.handles[which].fd, PUNCH_HOLE | KEEP_SIZE, at, length + 1)
        self.zero(at, min(at + length + 1, len(self.model)))

    def zero_range(self, which: int, at: int, length: int) -> None:
        fallocate(self.handles[which].fd, ZERO_RANGE, at, length + 1)
        self.grow(at + length + 1)
        self.zero(at, at + length + 1)

    def allocate(self, which: int, at: int, length: int) -> None:
        fallocate(self.handles[which].fd, 0, at, length + 1)
        self.grow(at + length + 1)

    def copy(self, which: int, at: int, length: int) -> None:
        """From the start of the file to somewhere behind it."""
        length = min(length, at, len(self.model))
        fd = self.handles[which].fd
        if self.handles[which].kind in ("append", "direct") or not length:
            return
        got = os.copy_file_range(fd, fd, length, 0, at)
        self.grow(at + got)
        self.model[at : at + got] = self.model[:got]

    def sync(self, which: int, at: int, _: int) -> None:
        handle = self.handles[which]
        if handle.memory is not None:
            handle.memory.flush()
        (os.fsync if at % 2 else os.fdatasync)(handle.fd)

    def reopen(self, which: int, at: int, _: int) -> None:
        old = self.handles[which]
        self.handles[which] = Handle(old.path, sorted(FLAGS)[at % 4])
        old.close()

    def rename(self, which: int, at: int, _: int) -> None:
        new = self.directory / f"g{at % 3}"
        os.rename(self.directory / self.name, new)
        self.name = new.name
        for handle in self.handles:
            handle.path = new

    def look(self, which: int, at: int, length: int) -> None:
        """From another process's view: sizes and a fresh handle."""
        assert os.fstat(self.handles[which].fd).st_size == len(self.model)
        fresh = os.open(self.directory / self.name, os.O_RDONLY)
        try:
            self.same(os.pread(fresh, length, at), at, length)
        finally:
            os.close(fresh)

    # helpers

    def grow(self, size: int) -> None:
        self.model += bytes(max(0, size - len(self.model)))

    def zero(self, start: int, end: int) -> None:
        if end > start:
            self.model[start:end] = bytes(end - start)

    def same(self, got: bytes, at: int, length: int) -> None:
        wanted = self.model[at : at + length]
        if got != wanted:
            pairs = zip(got, wanted, strict=False)
            first = next(
                (i for i, (a, b) in enumerate(pairs) if a != b), min(len(got), len(wanted))
            )
            raise AssertionError(
                f"differs at byte {at + first}; {len(got)} for {len(wanted)} bytes"
            )

    def final(self) -> None:
        for directory in (self.directory, self.source):
            self.same((directory / self.name).read_bytes(), 0, len(self.model) + 1)
            assert (directory / self.name).stat().st_size == len(self.model)


@contextlib.contextmanager
def page_aligned(length: int) -> Iterator[memoryview]:
    with mmap.mmap(-1, length) as room, memoryview(room) as view:
        yield view


OPERATIONS = (
    ["write"] * 6 + ["read"] * 5 + ["look"] * 2 + ["truncate"] * 2 + ["reopen"] * 2
    + ["truncate_by_open", "punch", "zero_range", "allocate", "copy", "sync", "rename"]
)  # fmt: skip
number = st.one_of(
    st.integers(0, LIMIT),
    st.integers(0, LIMIT // BLOCK).map(lambda block: block * BLOCK),
    st.integers(0, 3 * BLOCK),
)
step = st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 1), number, number)
kinds = st.tuples(st.sampled_from(sorted(FLAGS)), st.sampled_from(sorted(FLAGS)))


def check_model(directory: Path, source: Path, examples: int) -> None:
    turns = itertools.count()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(kinds, st.lists(step, min_size=1, max_size=50))
    def run(kinds: tuple[str, str], steps: list[tuple[str, int, int, int]]) -> None:
        name = f"turn{next(turns)}"
        (directory / name).mkdir()
        world = World(directory / name, source / name)
        world.begin(kinds)
        try:
            for operation, which, at, length in steps:
                getattr(world, operation)(which, at, length)
        finally:
            world.end()
        world.final()

    run()


def test_model(mount: Callable[..., Mount]) -> None:
    mounted = mount()
    check_model(mounted.path, mounted.source, 60)


def test_model_in_place(new_directory: Callable[[str], Path]) -> None:
    """The control: the model is right about the bare directory."""
    base = new_directory("model")
    check_model(base, base, 30)
