"""The control plane's log: stderr, one line a record; tracebacks alone take more."""

from __future__ import annotations

import logging
import os
import sys

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LEVELS = ("debug", "info", "warning", "error")


class OneLineFormatter(logging.Formatter):
    """Keeps a message on one line, whatever a file name or a peer put into it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).replace("\r", "\\r").replace("\n", "\\n")


def setup() -> None:
    """Log to stderr from the level in ZCFS_LOG up (`info` if it is not set)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLineFormatter(FORMAT))
    level = os.environ.get("ZCFS_LOG", "").lower() or "info"
    known = level in LEVELS
    logging.basicConfig(level=level.upper() if known else "INFO", handlers=[handler])
    if not known:
        logging.warning("ZCFS_LOG=%r is none of %s; using info", level, ", ".join(LEVELS))
