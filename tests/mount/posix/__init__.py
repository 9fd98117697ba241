"""The POSIX table: small checks that hold on a plain directory and on every mount of it.

A check is a function of a `Tree`, an empty directory of its own. It is registered by `@check`, and its name is its
place in the table. The same table runs against the bare directory, as a control: a check that fails there is wrong.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..linux import run_child

PASSED_THROUGH = ("kernel", "pinned")  #: engines whose writes are the kernel's
USER, OTHER, GROUP, TEAM = 1000, 1001, 1000, 2000


@dataclass(frozen=True)
class Tree:
    """Where a check works.

    path    its directory, in the tree under test
    source  the same directory in place
    root    the root of the tree under test
    engine  "bare", "kernel", "pool", "buffered", "pinned", or "peer" for another program's mount
    computed  whether the computed tree is served
    """

    path: Path
    source: Path
    root: Path
    engine: str
    computed: bool = False

    @property
    def mirrored(self) -> bool:
        return self.engine != "bare"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def file(
        self, name: str, data: bytes = b"", mode: int = 0o644, owner: int = -1, group: int = -1
    ) -> Path:
        """Make a file with exactly this mode."""
        path = self.path / name
        path.write_bytes(data)
        os.chown(path, owner, group)
        path.chmod(mode)
        return path

    def directory(self, name: str, mode: int = 0o755, owner: int = -1, group: int = -1) -> Path:
        path = self.path / name
        path.mkdir()
        os.chown(path, owner, group)
        path.chmod(mode)
        return path


@dataclass(frozen=True)
class Check:
    name: str
    run: Callable[[Tree], None]
    root: bool  # needs root
    mount_only: bool  # means nothing on the bare directory
    writes_what_is_read: bool  # opens for writing what is open for reading: not where it is pinned


TABLE: dict[str, Check] = {}


def check(
    *, root: bool = False, mount_only: bool = False, writes_what_is_read: bool = False
) -> Callable[[Callable[[Tree], None]], Callable[[Tree], None]]:
    """Put a function into the table under its name."""

    def register(function: Callable[[Tree], None]) -> Callable[[Tree], None]:
        add(
            function.__name__, function, root=root, mount_only=mount_only,
            writes_what_is_read=writes_what_is_read,
        )  # fmt: skip
        return function

    return register


def add(
    name: str,
    run: Callable[[Tree], None],
    *,
    root: bool = False,
    mount_only: bool = False,
    writes_what_is_read: bool = False,
) -> None:
    assert name not in TABLE, f"two checks are named {name}"
    TABLE[name] = Check(name, run, root, mount_only, writes_what_is_read)


@contextlib.contextmanager
def fails(*codes: int) -> Iterator[None]:
    """The block fails with one of these errnos."""
    wanted = " or ".join(errno.errorcode[code] for code in codes)
    try:
        yield
    except OSError as error:
        got = errno.errorcode.get(error.errno or 0, str(error.errno))
        assert error.errno in codes, f"{got} instead of {wanted}"
    else:
        raise AssertionError(f"no error instead of {wanted}")


def each_fails(code: int, acts: dict[str, Callable[[], object]]) -> None:
    """Every act fails with this errno; tells which do not."""
    wrong = []
    for name, act in acts.items():
        try:
            act()
            wrong.append(f"{name}: no error")
        except OSError as error:
            if error.errno != code:
                wrong.append(f"{name}: {errno.errorcode.get(error.errno or 0)}")
    assert not wrong, f"instead of {errno.errorcode[code]}: {', '.join(wrong)}"


def as_user(function: Callable[..., Any], *args: Any, **identity: Any) -> Any:
    """Run a function as a user without rights, in a process of its own."""
    return run_child(function, *args, **{"uid": USER, "gid": GROUP, "umask": 0o022, **identity})


def mode_of(path: Path | int) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def owner_of(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes that differ between any two blocks."""
    words = (length + 7) // 8
    return b"".join(((seed << 40) + at).to_bytes(8, "little") for at in range(words))[:length]


def load() -> dict[str, Check]:
    """The whole table, in the order of the files."""
    from . import (
        names,
        errors,
        matrix,
        owner,
        acl,
        times,
        data,
        space,
        xattr,
        dirs,
        locks,
        misc,
        mirror,
    )  # noqa: I001

    return TABLE
