"""The POSIX table on the bare directory and on every engine × transport."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import require
from .harness import PINNED, Mode
from .places import Place
from .posix import Check, fails, load


@pytest.fixture(scope="session")
def place(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Place]:
    kind = request.param
    if isinstance(kind, Mode):
        require(kind)
    name = str(kind).replace("/", "-")
    made = Place(scratch / f"table-{name}", kind, request.config.getoption("--peer"))
    yield made
    made.close()


@pytest.mark.parametrize("check", load().values(), ids=load().keys())
def test_posix(place: Place, check: Check) -> None:
    if check.root and os.geteuid() != 0:
        pytest.skip("needs root")
    if check.mount_only and place.kind == "bare":
        return
    if check.writes_what_is_read and place.kind == PINNED:
        with fails(errno.ETXTBSY):
            place.run(check)
        return
    place.run(check)
