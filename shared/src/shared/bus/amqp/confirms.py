"""The confirms of a channel: whether the broker has stored the published messages."""

import asyncio

from shared.bus.amqp.broker_errors import RefusedError, UnroutedError
from shared.bus.amqp.received_messages import Confirmed, Returned

__all__ = ["Confirms"]


class Confirms:
    """The published messages that the broker has not confirmed, by their number on the channel."""

    def __init__(self) -> None:
        self._published = 0
        self._pending: dict[int, asyncio.Future[None]] = {}

    def expect(self) -> tuple[int, "asyncio.Future[None]"]:
        """Return the number of the next message, and the future of its confirm."""
        self._published += 1
        confirm = self._pending[self._published] = asyncio.get_running_loop().create_future()
        return self._published, confirm

    def forget(self, number: int) -> None:
        """Keep nothing of a message."""
        self._pending.pop(number, None)

    def settle(self, message: Confirmed) -> None:
        """Set the results of messages that the broker has stored or refused."""
        numbers = [message.tag]
        if message.multiple:
            numbers = [each for each in self._pending if each <= message.tag or not message.tag]
        for number in numbers:
            confirm = self._pending.pop(number, None)
            if confirm is None or confirm.done():
                continue
            if message.refused:
                confirm.set_exception(RefusedError())
            else:
                confirm.set_result(None)

    def fail_returned(self, message: Returned) -> bool:
        """Fail an unroutable message, which has its number as correlation id.

        False if its confirm is not expected. The broker confirms the message later.
        """
        number = message.correlation_id
        confirm = self._pending.get(int(number)) if number.isdecimal() else None
        if confirm is None:
            return False
        if not confirm.done():
            confirm.set_exception(UnroutedError())
        return True

    def fail_all(self) -> None:
        """Fail every message without a confirm: the channel is lost."""
        for confirm in self._pending.values():
            if not confirm.done():
                confirm.set_exception(ConnectionError("the broker is unavailable"))
