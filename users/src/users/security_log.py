"""The log of security events: one line each, with ids and without personal data."""

import time
from collections.abc import Callable
from typing import Final

import structlog

from shared.context import Context
from shared.trace import trace_id

__all__ = ["SecurityLog"]

_log = structlog.get_logger()
_LINES_PER_SECOND: Final = 10
"""Lines of one event."""


class SecurityLog:
    """Writes at most ten lines per second of each event. The next line counts the omitted ones.

    Lines contain ids of users and sessions, counts and the trace id, but never a name, an address,
    a password or a token. `clock` returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._written: dict[str, tuple[int, int]] = {}
        self._omitted: dict[str, int] = {}

    def write(self, event: str, context: Context, **ids: str | int) -> None:
        """Write a line of `event`, unless ten were written in this second."""
        second = int(self._clock())
        last, count = self._written.get(event, (second, 0))
        count = count if last == second else 0
        if count >= _LINES_PER_SECOND:
            self._omitted[event] = self._omitted.get(event, 0) + 1
            return
        self._written[event] = (second, count + 1)
        omitted = self._omitted.pop(event, 0)
        fields = {"omitted": omitted} if omitted else {}
        _log.info(event, **ids, **fields, trace_id=trace_id(context.traceparent))
