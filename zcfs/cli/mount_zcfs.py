"""mount.zcfs and mount.fuse.zcfs: what mount(8) runs for `mount -t zcfs` and for fstab.

    mount.zcfs      SOURCE MOUNTPOINT [-sfnv] [-t TYPE] [-o OPT,…]
    mount.fuse.zcfs FSNAME MOUNTPOINT [-sfnv] [-t TYPE] [-o source=DIR,OPT,…]

With `source=DIR` the first word is the name that mountinfo shows, and the filesystem type is plain
`fuse`. `remount` changes the flags of a mount in place, by mount(2).
"""

from __future__ import annotations

import ctypes
import getopt
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zcfs import control
from zcfs.cli.common import find_mount, warn
from zcfs.errors import UsageError, ZcfsError
from zcfs.mount import Options, start
from zcfs.mountinfo import Mount

MS_RDONLY = 1
MS_REMOUNT = 32
#: mount(2)'s flags by option: (bit, whether the option sets it)
FLAGS = {
    "ro": (MS_RDONLY, True), "rw": (MS_RDONLY, False),
    "nosuid": (2, True), "suid": (2, False),
    "nodev": (4, True), "dev": (4, False),
    "noexec": (8, True), "exec": (8, False),
    "sync": (16, True), "async": (16, False),
    "dirsync": (128, True),
    "noatime": (1024, True), "atime": (1024, False),
    "nodiratime": (2048, True), "diratime": (2048, False),
    "relatime": (1 << 21, True), "norelatime": (1 << 21, False),
    "strictatime": (1 << 24, True), "nostrictatime": (1 << 24, False),
    "lazytime": (1 << 25, True), "nolazytime": (1 << 25, False),
}  # fmt: skip
#: Options that mount(8) and fstab pass on and that mean nothing to the daemon.
FOR_MOUNT8 = {
    "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev",
    "async", "atime", "diratime", "relatime", "norelatime", "nostrictatime", "nolazytime",
    "silent", "loud", "iversion", "noiversion", "mand", "nomand",
}  # fmt: skip
#: What the daemon takes; with -s anything else is dropped.
FOR_DAEMON = {
    "ro", "rw", "allow_other", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "noatime",
    "nodiratime", "strictatime", "lazytime", "sync", "dirsync", "nosymfollow", "nonempty",
    "fsname", "subtype", "attr_timeout", "entry_timeout", "engine", "transport", "locks",
    "threads", "log", "policy", "pin", "pin-size", "pool-size", "frame-size", "io",
}  # fmt: skip
#: What mountinfo shows of a fuse mount, and mount(8) hands back to us on a remount.
SHOWN = {"user_id", "group_id", "default_permissions", "allow_other", "max_read", "fsname",
         "subtype", "source", "rootmode", "fd", "blksize"}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What mount(8) asks for."""

    name: str  #: the first word: a directory, or with source=DIR any name
    mountpoint: str
    options: tuple[str, ...]
    fake: bool = False
    verbose: bool = False
    sloppy: bool = False

    @property
    def remount(self) -> bool:
        return "remount" in self.options


def parse(argv: Sequence[str]) -> Request:
    """mount(8)'s command line for a helper. UsageError if it is none."""
    try:
        pairs, words = getopt.gnu_getopt(list(argv), "sfnvN:o:t:")
    except getopt.GetoptError as exc:
        raise UsageError(f"{exc.msg}; usage: mount.zcfs SOURCE MOUNTPOINT [-o OPT,…]") from exc
    if len(words) != 2:
        raise UsageError("usage: mount.zcfs SOURCE MOUNTPOINT [-sfnv] [-t TYPE] [-o OPT,…]")
    given = {flag for flag, _ in pairs}
    options = [o for flag, value in pairs if flag == "-o" for o in value.split(",") if o]
    name, mountpoint = words
    return Request(
        name, mountpoint, tuple(options),
        fake="-f" in given, verbose="-v" in given, sloppy="-s" in given,
    )  # fmt: skip


def daemon_options(request: Request) -> tuple[str, Options]:
    """The source directory, and what of mount(8)'s options is for the daemon."""
    source = request.name
    options = []
    for option in request.options:
        name, _, value = option.partition("=")
        if name == "source":
            source = value
            options += [f"fsname={request.name}", "subtype="]
        elif name in FOR_MOUNT8 or name.startswith(("x-", "X-", "comment")):
            continue
        elif name in FOR_DAEMON or not request.sloppy:
            options.append(option)
    return source, Options(mount_options=tuple(options))


def do_mount(request: Request) -> None:
    """Mount, through the daemon."""
    source, options = daemon_options(request)
    options.arguments()
    if request.fake:
        return
    mount = start(source, request.mountpoint, options, warn)
    if request.verbose:
        print(f"{source} is mounted on {mount.mountpoint} (type {mount.fstype})")


def do_remount(request: Request) -> None:
    """Change the flags of a mount; what is not named stays as it is."""
    mount = find_mount(request.mountpoint)
    flags = remount_flags(mount, request.options)
    if not flags & MS_RDONLY and is_read_only_for_good(mount):
        raise ZcfsError(
            f"{mount.mountpoint}: mounted read-only on the daemon's side; umount, and mount again"
        )
    if request.fake:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(mount.mountpoint)
    if libc.mount(None, target, None, ctypes.c_ulong(MS_REMOUNT | flags), None) != 0:
        raise ZcfsError(f"{mount.mountpoint}: cannot remount: {os.strerror(ctypes.get_errno())}")
    if request.verbose:
        print(f"{mount.mountpoint} remounted")


def is_read_only_for_good(mount: Mount) -> bool:
    """Whether the daemon itself refuses writes (--read-only), whatever the mount's flags say."""
    try:
        return bool(control.query(mount, "status").get("read_only"))
    except ZcfsError:
        return False


def remount_flags(mount: Mount, options: Iterable[str]) -> int:
    """mount(2)'s flags after `options`. UsageError for what only a new mount can change."""
    flags = 0
    for option in (*mount.options, *mount.super_options, *options):
        name = option.partition("=")[0]
        if name in FLAGS:
            bit, on = FLAGS[name]
            flags = flags | bit if on else flags & ~bit
    for option in options:
        name = option.partition("=")[0]
        known = name in FLAGS or name in FOR_MOUNT8 or name in SHOWN or name == "remount"
        if not known and not name.startswith(("x-", "X-", "comment")):
            raise UsageError(f"{mount.mountpoint}: {option} cannot change on a remount")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of both helpers. Returns the exit status."""
    try:
        request = parse(sys.argv[1:] if argv is None else argv)
        (do_remount if request.remount else do_mount)(request)
    except ZcfsError as exc:
        print(f"mount.zcfs: {exc}", file=sys.stderr)
        return exc.status
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        print(f"mount.zcfs: {where}{exc.strerror or exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
