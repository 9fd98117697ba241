"""The FUSE operations of the computed tree: a small read-only file system.

Files are direct_io: a read always comes here, and the kernel does not hold it to st_size. The whole
file is made at open and belongs to the handle, so a slow reader sees one moment. st_size is the
size as of the last open (of a longer one that is still open, so that nobody who trusts fstat cuts a
file short); before the first open it is 0 where the size is not known, as in /proc.

Lookup counts are not kept: every node lives as long as the process, and has the same nodeid in the
next one. The handle of a directory is its nodeid. Handles of files begin at a random number, so
that a handle from before a restart is unknown (ESTALE) rather than somebody else's.

Concurrency: one thread; a handler runs alone between its awaits, and only `open` awaits anything.
Its await comes before it touches the tables, so every change to `_handles` and `_states` is atomic.
An await after `_admit` would let more handles in than MAX_HANDLES.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    ReaddirToken,
    RequestContext,
    StatvfsData,
)

from zcfs.fs.guard import guarded
from zcfs.fs.tree import KERNEL_ROOT, ROOT_NAME, Directory, File, Node, Tree

DEADLINE = 15.0
"""Seconds that a handler may take before its caller gets EIO; longer than any wait inside one."""

ENTRY_TIMEOUT = 60.0
"""Seconds that the kernel may keep a name: the tree changes only with the program."""

MAX_HANDLES = 4096
"""Open files at once; each holds its content."""

BLOCK = 4096
STAT_BLOCK = 512
NAME_MAX = 255


@dataclass
class Snapshot:
    """What one open sees."""

    file: File
    data: bytes


@dataclass
class FileState:
    """What stat says of a file."""

    size: int
    changed_ns: int
    open: dict[int, Snapshot] = field(default_factory=dict)

    def visible_size(self) -> int:
        return max([self.size, *(len(snapshot.data) for snapshot in self.open.values())])


async def refuse(self: Operations, inode: int, *args: object, **kwargs: object) -> NoReturn:
    """What a read-only file system says to whatever would change it."""
    self._node(inode)
    raise FUSEError(errno.EROFS)


REFUSE: Any = guarded(refuse)  # stands for methods of many signatures


class Operations(pyfuse3.Operations):
    """Answers the daemon's requests; the methods are pyfuse3's, see its documentation."""

    def __init__(
        self, tree: Tree, deadline: float = DEADLINE, first_handle: int | None = None
    ) -> None:
        super().__init__()
        self.deadline = deadline
        self._tree = tree
        self._started_ns = time.time_ns()
        self._handles: dict[int, Snapshot] = {}
        self._states: dict[int, FileState] = {}
        random = int.from_bytes(os.urandom(8), "little") >> 1
        self._next_handle = random if first_handle is None else first_handle

    # Nodes and handles

    def _node(self, nodeid: int) -> Node:
        node = self._tree.get(nodeid)
        if node is None:
            raise FUSEError(errno.ESTALE)
        return node

    def _directory(self, nodeid: int) -> Directory:
        node = self._node(nodeid)
        if not isinstance(node, Directory):
            raise FUSEError(errno.ENOTDIR)
        return node

    def _state(self, file: File) -> FileState:
        return self._states.setdefault(file.nodeid, FileState(file.size, self._started_ns))

    def _snapshot(self, fh: int) -> Snapshot:
        snapshot = self._handles.get(fh)
        if snapshot is None:
            raise FUSEError(errno.ESTALE)
        return snapshot

    def _check_room(self) -> None:
        if len(self._handles) >= MAX_HANDLES:
            raise FUSEError(errno.ENFILE)

    def _admit(self, snapshot: Snapshot) -> int:
        """Give `snapshot` a handle, and let stat know."""
        self._check_room()
        fh, self._next_handle = self._next_handle, self._next_handle + 1
        state = self._state(snapshot.file)
        state.size, state.changed_ns = len(snapshot.data), time.time_ns()
        state.open[fh] = self._handles[fh] = snapshot
        return fh

    def _attributes(self, node: Node) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = node.nodeid
        entry.entry_timeout = ENTRY_TIMEOUT
        entry.st_blksize = BLOCK
        if isinstance(node, Directory):
            changed_ns = self._started_ns
            entry.attr_timeout = ENTRY_TIMEOUT
            entry.st_mode = stat.S_IFDIR | 0o555
            entry.st_nlink = 2 + sum(isinstance(e, Directory) for e in node.entries.values())
        else:
            state = self._state(node)
            changed_ns = state.changed_ns
            entry.attr_timeout = 0
            entry.st_mode = stat.S_IFREG | 0o444
            entry.st_size = state.visible_size()
            entry.st_blocks = -(-entry.st_size // STAT_BLOCK)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = changed_ns
        return entry

    # Names and attributes

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        node: Node | None
        if parent_inode == KERNEL_ROOT:
            node = self._tree.root if name == ROOT_NAME else None
        else:
            node = self._tree.lookup(self._directory(parent_inode), name)
        if node is None:
            raise FUSEError(errno.ENOENT)
        return self._attributes(node)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing to forget: nodes are static. Not guarded, since there is no reply to put EIO
        into."""

    @guarded
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self._node(inode))

    @guarded
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        node = self._node(inode)
        if mode & os.W_OK:
            raise FUSEError(errno.EROFS)
        return isinstance(node, Directory) or not mode & os.X_OK

    @guarded
    async def readlink(self, inode: int, ctx: RequestContext) -> NoReturn:
        self._node(inode)
        raise FUSEError(errno.EINVAL)

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> NoReturn:
        self._node(inode)
        raise FUSEError(errno.ENODATA)

    @guarded
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        self._node(inode)
        return ()

    @guarded
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        stats = StatvfsData()
        stats.f_bsize = stats.f_frsize = BLOCK
        stats.f_files = len(self._tree)
        stats.f_namemax = NAME_MAX
        return stats

    # Files

    @guarded
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        node = self._node(inode)
        if isinstance(node, Directory):
            raise FUSEError(errno.EISDIR)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise FUSEError(errno.EROFS)
        self._check_room()
        fh = self._admit(Snapshot(node, await node.content()))
        return FileInfo(fh=fh, direct_io=True, keep_cache=False)

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return self._snapshot(fh).data[off : off + size]

    @guarded
    async def poll(
        self,
        inode: int,
        fh: int,
        poll_handle: pyfuse3.PollHandle | None,
        ctx: RequestContext,
    ) -> int:
        self._node(inode)
        return select.POLLIN | select.POLLRDNORM

    @guarded
    async def flush(self, fh: int) -> None:
        """Nothing is ever written."""

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Nothing is ever written."""

    @guarded
    async def release(self, fh: int) -> None:
        snapshot = self._handles.pop(fh, None)
        if snapshot is not None:
            del self._state(snapshot.file).open[fh]

    # Directories

    @guarded
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return self._directory(inode).nodeid

    @guarded
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        directory = self._directory(fh)
        parent = directory.parent or directory
        entries = [(b".", directory), (b"..", parent), *directory.entries.items()]
        for position, (name, node) in enumerate(entries[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, name, self._attributes(node), position):
                return

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Nothing is ever written."""

    @guarded
    async def releasedir(self, fh: int) -> None:
        """A directory's handle is its nodeid: there is nothing to release."""

    # What a read-only file system refuses

    @guarded
    async def write(self, fh: int, off: int, buf: bytes) -> NoReturn:
        raise FUSEError(errno.EBADF)  # no handle is open for writing

    setattr = mknod = mkdir = create = symlink = link = REFUSE
    unlink = rmdir = rename = setxattr = removexattr = REFUSE
