"""Malformed responses in the replies of workers."""

import logging

from postbus.registry import Method
from shared.errors import ServiceError, internal
from shared.limited_log import LimitedLog

__all__ = ["malformed_reply"]


def malformed_reply(method: Method, log: LimitedLog) -> ServiceError:
    """Log the fault of the worker and return INTERNAL: the call may have had an effect."""
    log.write(logging.WARNING, "reply.malformed", key=method.name, method=method.name)
    return internal()
