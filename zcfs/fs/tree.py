"""The shape of the computed tree: names, nodeids, and where each file's bytes come from.

Nodeids have bit 63 set: by it the daemon tells this tree from the mirror. They are constants, so
that the kernel's references stay good when the control plane is started again. Pure data: no
descriptor, no pyfuse3, no await.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

COMPUTED = 1 << 63
"""The bit that marks a nodeid of the computed tree."""

KERNEL_ROOT = 1
"""The root of the mount; it belongs to the mirror, but the LOOKUP of `.zcfs` in it comes here."""

ROOT_NAME = b".zcfs"

Content = Callable[[], Awaitable[bytes]]
"""Makes the whole of a file; called once an open."""


@dataclass(frozen=True, eq=False)
class File:
    """A read-only file."""

    nodeid: int
    content: Content
    size: int = 0
    """Bytes, where that is known before the first open."""


@dataclass(eq=False)
class Directory:
    """A read-only directory; the order of `entries` is the order of readdir."""

    nodeid: int
    entries: dict[bytes, Node] = field(default_factory=dict)
    parent: Directory | None = None

    def __post_init__(self) -> None:
        for entry in self.entries.values():
            if isinstance(entry, Directory):
                entry.parent = self


Node = File | Directory


class Tree:
    """All nodes by nodeid."""

    def __init__(self, root: Directory) -> None:
        self.root = root
        self._nodes: dict[int, Node] = {}
        for node in _walk(root):
            if not COMPUTED <= node.nodeid < 2 * COMPUTED or node.nodeid in self._nodes:
                raise ValueError(f"bad or double nodeid {node.nodeid:#x}")
            self._nodes[node.nodeid] = node

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, nodeid: int) -> Node | None:
        return self._nodes.get(nodeid)

    def lookup(self, directory: Directory, name: bytes) -> Node | None:
        """The entry `name`; `.` and `..` work too, and `..` of the root is the root itself."""
        if name == b".":
            return directory
        if name == b"..":
            return directory.parent or directory
        return directory.entries.get(name)


def _walk(node: Node) -> Iterator[Node]:
    yield node
    if isinstance(node, Directory):
        for entry in node.entries.values():
            yield from _walk(entry)
