"""Finds methods that two queues serve: the broker gives each of them a copy of every call.

Each call then is executed twice and gets two replies. A caller cannot see the bindings of its
callee's exchange, but the second reply shows them. A redelivered call can have a second reply too,
if its worker died between reply and acknowledgement; then it happens once.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.topology import owner
from shared.errors import shown_name
from shared.limited_log import LimitedLog

__all__ = ["REMEMBERED", "SecondReplies"]

REMEMBERED: Final = 1024
"""Answered calls of one generation; two generations are remembered."""
_SHOWN_SECONDS: Final = 60.0
"""Time for which readiness shows a second reply."""
_INCIDENT: Final = "call.second_reply"


class SecondReplies:
    """Counts and logs second replies, at most one line of a method in ten seconds.

    `counts` are the incidents of the bus. `clock` returns seconds. A worker is named by its queue
    of controls, the `reply_to` of its replies; the name is empty if a reply has none.
    """

    def __init__(self, counts: Counter[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.answered: dict[str, tuple[str, str]] = {}
        """Route and worker of the last answered calls, by correlation id. The receiver of replies
        adds each call, and calls `renew` once there are more than REMEMBERED."""
        self._earlier: dict[str, tuple[str, str]] = {}
        self._clock = clock
        self._log = LimitedLog(clock=clock, counts=counts)
        self._shown: tuple[str, float] | None = None

    @property
    def warning(self) -> str:
        """The method with second replies in the last minute, in a sentence; empty if none."""
        if self._shown is None or self._clock() >= self._shown[1]:
            return ""
        return (
            f"Two workers have replied to one call of {self._shown[0]}: two queues serve it, and"
            f" each call is executed twice. See the log event {_INCIDENT}."
        )

    def renew(self) -> None:
        """Begin a new generation of answered calls, and forget the last but one."""
        self._earlier, self.answered = self.answered, {}

    def check(self, correlation_id: str, message: Delivered) -> None:
        """Take note of a reply to a call that does not wait for one.

        A late reply, to a call that has failed at its deadline, is no second one.
        """
        first = self.answered.get(correlation_id) or self._earlier.get(correlation_id)
        if first is not None and message.user_id == owner(first[0]):
            self.write(*first, message.reply_to)

    def write(self, route: str, first: str, second: str) -> None:
        """Count and log two replies of different workers to a call of a method."""
        self._shown = route, self._clock() + _SHOWN_SECONDS
        workers = [shown_name(first), shown_name(second)]
        self._log.write(logging.ERROR, _INCIDENT, key=route, method=route, workers=workers)
