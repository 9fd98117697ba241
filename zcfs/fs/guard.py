"""What no handler may do: fail unseen, end the session, or take for ever.

pyfuse3 ends its session, and with it this process, on any exception but FUSEError; and it stops
reading requests when all its tasks are busy.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar, cast

import trio
from pyfuse3 import FUSEError

from zcfs.fs.control import ControlError

log = logging.getLogger(__name__)

Handler = TypeVar("Handler", bound=Callable[..., Coroutine[Any, Any, Any]])


class HasDeadline(Protocol):
    deadline: float
    """Seconds that a handler may take."""


def guarded(method: Handler) -> Handler:
    """Make `method` answer EIO, and log why, on anything but a FUSEError and past its deadline."""
    name = method.__name__

    @functools.wraps(method)
    async def handler(self: HasDeadline, *args: Any, **kwargs: Any) -> Any:
        try:
            with trio.fail_after(self.deadline):
                return await method(self, *args, **kwargs)
        except FUSEError:
            raise
        except ControlError as error:
            log.error("%s: %s", name, error)
        except trio.TooSlowError:
            log.error("%s took more than %g s", name, self.deadline)
        except Exception:
            log.exception("%s failed", name)
        raise FUSEError(errno.EIO)

    return cast(Handler, handler)
