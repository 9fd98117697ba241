"""Places in which the POSIX table runs."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from pathlib import Path

from . import harness
from .guard import mounts_below
from .harness import Mode, Mount
from .posix import Check, Tree


class Place:
    """A directory in which the whole table runs: bare, or mounted for as long as nothing breaks."""

    def __init__(self, base: Path, kind: str | Mode, peer: str | None) -> None:
        self.kind, self._base, self._peer = kind, base, peer
        self._numbers = itertools.count()
        self._mount: Mount | None = None
        self._dead: list[Mount] = []
        base.mkdir()
        (base / "source").mkdir()

    def tree(self, check: Check) -> Tree:
        name = f"{check.name}-{next(self._numbers)}"
        source = self._base / "source" / name
        if self.kind == "bare":
            source.mkdir()
            return Tree(source, source, self._base / "source", "bare")
        mount = self.mount()
        (mount.path / name).mkdir()
        engine = self.kind.engine if isinstance(self.kind, Mode) else "peer"
        computed = isinstance(self.kind, Mode) and harness.control_plane() is not None
        return Tree(mount.path / name, source, mount.path, engine, computed)

    def mount(self) -> Mount:
        """The mount, started again if a check has broken it."""
        if self._mount is not None and not (self._mount.alive() and self._mount.mounted()):
            self._mount.close()
            self._mount = None
        if self._mount is None:
            path = self._base / f"mnt-{next(self._numbers)}"
            path.mkdir()
            if isinstance(self.kind, Mode):
                self._mount = harness.start(self._base / "source", path, self.kind, computed=True)
                if harness.control_plane() is not None:
                    self._mount.control_plane_pid()
            else:
                assert self._peer
                self._mount = harness.start_peer(self._peer, self._base / "source", path)
        return self._mount

    def finish(self, tree: Tree) -> None:
        """After a check: the daemon lives and has complained of nothing."""
        shutil.rmtree(tree.source, ignore_errors=True)
        for fd in open_below(tree.root):
            os.close(fd)  # a check that failed
        if self._mount is not None:
            assert self._mount.alive(), f"the daemon died: {self._mount.process.poll()}"
            wrong = self._mount.unexpected_log()
            assert not wrong, "unexpected in the log:\n" + "\n".join(wrong)

    def run(self, check: Check) -> None:
        tree = self.tree(check)
        try:
            check.run(tree)
        finally:
            self.finish(tree)

    def close(self) -> None:
        wrong = self._mount.close() if self._mount is not None else []
        assert not mounts_below(str(self._base))
        shutil.rmtree(self._base, ignore_errors=True)
        assert not wrong, "\n".join(wrong)


def open_below(path: Path) -> list[int]:
    """Descriptors of this process that would keep a mount busy."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith(f"{path}/"):
                found.append(int(fd))
    return found
