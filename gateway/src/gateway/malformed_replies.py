"""Replies of workers whose response is malformed."""

import logging
from typing import Final

from postbus.registry import Method
from shared.errors import ServiceError, internal
from shared.limited_log import LimitedLog

__all__ = ["malformed_reply"]

_log: Final = LimitedLog()


def malformed_reply(method: Method) -> ServiceError:
    """Log the fault of the worker and return INTERNAL: the call may have had an effect."""
    _log.write(logging.WARNING, "reply.malformed", key=method.name, method=method.name)
    return internal()
