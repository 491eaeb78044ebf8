"""Log lines of which many can be triggered, such as by messages of the bus, limited in number."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import structlog

__all__ = ["LimitedLog"]

_log = structlog.get_logger()
_SECONDS: Final = 10.0
"""The interval of the limit, unless another is given."""


class LimitedLog:
    """Writes at most `lines` lines of each event and key in `seconds`, by default ten.

    The next line has the number of those that were omitted. `counts` gets the number of lines by
    event, with the omitted ones. `clock` returns seconds.
    """

    def __init__(
        self,
        lines: int = 1,
        clock: Callable[[], float] = time.monotonic,
        *,
        seconds: float = _SECONDS,
        counts: Counter[str] | None = None,
    ) -> None:
        self._lines = lines
        self._seconds = seconds
        self._clock = clock
        self._counts = Counter[str]() if counts is None else counts
        self._written: dict[tuple[str, str], tuple[float, int]] = {}  # end of interval, lines
        self._omitted: dict[tuple[str, str], int] = {}

    def write(self, level: int, event: str, *, key: str = "", **fields: Any) -> None:
        """Write a line of a level of `logging`, unless there are too many.

        Each `key` has a limit of its own; it must be one of a few, not a text of a client.
        """
        self._counts[event] += 1
        now, counted = self._clock(), (event, key)
        end, lines = self._written.get(counted, (now, 0))
        if now >= end:
            end, lines = now + self._seconds, 0
        if lines >= self._lines:
            self._omitted[counted] = self._omitted.get(counted, 0) + 1
            return
        self._written[counted] = end, lines + 1
        omitted = self._omitted.pop(counted, 0)
        if omitted:
            fields["omitted"] = omitted
        _log.log(level, event, **fields)
