"""Link mount.zcfs and mount.fuse.zcfs into /sbin, where mount(8) looks for them.

After that `mount -t zcfs SOURCE MOUNTPOINT -o OPT,…`, `mount -o remount,ro MOUNTPOINT` and lines
in /etc/fstab work:

    /srv/data  /mnt/data  zcfs  ro,allow_other  0 0"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zcfs.errors import ZcfsError

HELP = "let mount(8) and fstab know zcfs"
NAMES = ("mount.zcfs", "mount.fuse.zcfs")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", default="/sbin", help="where to (default %(default)s)")
    parser.add_argument("--remove", action="store_true", help="take the links away again")


def run(args: argparse.Namespace) -> int:
    try:
        link_all(args)
    except OSError as exc:  # whose own file name is that of the target
        raise ZcfsError(f"{args.dir}: {exc.strerror}; be root, or name another --dir") from exc
    return 0


def link_all(args: argparse.Namespace) -> None:
    """Make both links, or take them away."""
    for name in NAMES:
        link, target = Path(args.dir, name), Path(sys.executable).with_name(name)
        if not args.remove and not target.exists():
            raise ZcfsError(f"{target}: not installed; ./mountctl sets it up")
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            raise ZcfsError(f"{link}: a file, not a link of ours; move it away first")
        if not args.remove:
            link.symlink_to(target)
            print(f"{link} -> {target}")
