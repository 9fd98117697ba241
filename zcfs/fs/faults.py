"""Files that fail on purpose: test only, and only where ZCFS_TEST_FAULTS is set and not empty.

`.zcfs/.fault/raise` fails in its handler, `hang` never answers, `block` stops the whole process for
a while, `exit` ends it; each when it is opened.
"""

from __future__ import annotations

import os
import time

import trio

from zcfs.fs.tree import COMPUTED, Directory, File, Node

BLOCK_SECONDS = 20.0  # longer than a test needs on a busy machine, shorter than a hang
EXIT_STATUS = 70


async def _raise() -> bytes:
    raise RuntimeError("this file fails on purpose")


async def _hang() -> bytes:
    await trio.sleep_forever()
    raise AssertionError("unreachable")


async def _block() -> bytes:
    time.sleep(BLOCK_SECONDS)  # the event loop as well: that is what this file is for
    return b"blocked\n"


async def _exit() -> bytes:
    os._exit(EXIT_STATUS)


def entries() -> dict[bytes, Node]:
    """What goes into `/.zcfs`: nothing, unless tests asked for it."""
    if not os.environ.get("ZCFS_TEST_FAULTS"):
        return {}
    files: dict[bytes, Node] = {
        b"raise": File(COMPUTED + 0x1001, _raise),
        b"hang": File(COMPUTED + 0x1002, _hang),
        b"block": File(COMPUTED + 0x1003, _block),
        b"exit": File(COMPUTED + 0x1004, _exit),
    }
    return {b".fault": Directory(COMPUTED + 0x1000, files)}
