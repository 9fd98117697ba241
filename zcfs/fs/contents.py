"""What the files of the computed tree say, and the one table that names them.

status.json and stats.json are the daemon's own documents, laid out for reading; metrics is made of
both. Each is made at open, so a reader sees one moment however slowly it reads.
"""

from __future__ import annotations

import zcfs
from zcfs.fs.control import ControlClient, Document
from zcfs.fs.tree import COMPUTED, Directory, File, Node


class Contents:
    """The makers of the files' bytes."""

    def __init__(self, control: ControlClient) -> None:
        self._control = control

    @staticmethod
    async def version() -> bytes:
        return VERSION

    async def status(self) -> bytes:
        return pretty(await self._control.fetch("status"))

    async def stats(self) -> bytes:
        return pretty(await self._control.fetch("stats"))

    async def metrics(self) -> bytes:
        from zcfs.fs import metrics

        status = await self._control.fetch("status")
        stats = await self._control.fetch("stats")
        return metrics.render(status, stats).encode()


VERSION = f"{zcfs.__version__}\n".encode()


def pretty(document: Document) -> bytes:
    import json

    return json.dumps(document, indent=2).encode() + b"\n"


def build_root(contents: Contents, extra: dict[bytes, Node] | None = None) -> Directory:
    """`/.zcfs` with `extra` entries behind its own. A nodeid, once given to a name, stays its."""
    entries: dict[bytes, Node] = {
        b"version": File(COMPUTED + 2, contents.version, size=len(VERSION)),
        b"status.json": File(COMPUTED + 3, contents.status),
        b"stats.json": File(COMPUTED + 4, contents.stats),
        b"metrics": File(COMPUTED + 5, contents.metrics),
    }
    return Directory(COMPUTED + 1, entries | (extra or {}))
