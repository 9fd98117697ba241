"""The errors that zcfs raises on purpose. Each message names the path and the way out."""


class ZcfsError(Exception):
    """Something that zcfs cannot do here. `status` is the exit status of a command it ends."""

    status = 1


class UsageError(ZcfsError):
    """The caller asked for something that makes no sense; nothing was touched."""

    status = 2


class BusyError(ZcfsError):
    """Processes hold the mount."""


class DaemonError(ZcfsError):
    """The daemon is dead, hangs, or refused; the message is its own where it sent one."""
