"""Consumers of events: what fails is tried again later, and becomes a dead letter in the end."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from aio_pika.abc import AbstractChannel, AbstractQueue

from postbus.bus.v1 import Event
from shared.bus.amqp import frames, topology
from shared.bus.amqp.broker_connection import Link
from shared.bus.amqp.broker_session import CONTENT_TYPE, Session
from shared.bus.amqp.frames import Delivered
from shared.bus.amqp.message_channel import Lane
from shared.bus.amqp.queue_consumer import Endpoint
from shared.bus.amqp.queue_migration import prepare
from shared.bus.message_bus import EventHandler, Failure
from shared.errors import ServiceError
from shared.wire import decode

__all__ = ["EventConsumer"]

_log = structlog.get_logger()
_PREFETCH: Final = 32
_BROKER_DELAY: Final = 1.0


class EventConsumer(Endpoint):
    """Hands the events of a queue to a handler."""

    def __init__(
        self,
        queue: str | None,
        types: Sequence[str],
        handler: EventHandler,
        on_gap: Callable[[], None] | None,
        delays: Sequence[float],
    ) -> None:
        super().__init__(queue or "", prefetch=_PREFETCH)
        self._types = types
        self._handler = handler
        self._on_gap = on_gap
        self._delays = delays

    def _link_of(self, session: Session) -> Link:
        return session.consuming

    async def start(self, session: Session) -> None:
        """See Endpoint.start; tells of the gap if this is not the first time."""
        again = self._session is not None
        self._publisher = session
        await super().start(session)
        if again and self._on_gap is not None:
            self._on_gap()

    async def _declare(self, channel: AbstractChannel) -> AbstractQueue:
        if self.queue_name:
            await prepare(self._link, topology.dead_letters(self.queue_name))
            for delay in self._delays:
                await topology.declare(self._link, topology.delay_queue(delay))
            await prepare(self._link, topology.consumer_queue(self.queue_name, self._types))
            return await channel.get_queue(self.queue_name, ensure=False)
        queue = await channel.declare_queue(exclusive=True, auto_delete=True)
        for event in self._types:
            await queue.bind(topology.EVENT_EXCHANGE, event)
        return queue

    async def _handle(self, lane: Lane, message: Delivered) -> None:
        try:
            if message.oversized:  # its body was not read: the broker still has it
                lane.reject(message.tag, requeue=False)
                return
            failure = await self._handler(message.body)
            if failure is None or not self.queue_name or await self._put_off(message, failure):
                lane.ack(message.tag)
        except Exception:  # noqa: BLE001  # the edge: no message may stay in hand
            _log.exception("event.rejected", queue=self.queue_name)
            lane.reject(message.tag, requeue=False)
        finally:
            del self._running[message]

    async def _put_off(self, message: Delivered, failure: Failure) -> bool:
        """Hand the event over to its next try, or to the dead letters; False if that is lost.

        It is acknowledged only then: what happens in between makes it come twice, never vanish.
        """
        attempt = _attempt(message)
        delay = failure.delay(attempt, self._delays)
        headers = {
            topology.ATTEMPT: attempt + (delay is not None),
            topology.REASON: failure.reason,
        }
        if delay is None:
            headers[topology.MESSAGE] = failure.message[:1000]
            headers[topology.CONSUMER] = self.queue_name
            headers[topology.TIME] = datetime.now(UTC).isoformat(timespec="milliseconds")
            target = ("", topology.dead_letters(self.queue_name).name)
            _log.error("event.dead", queue=self.queue_name, reason=failure.reason)
        else:
            target = (topology.delay_exchange(delay), self.queue_name)
        header = frames.properties(
            CONTENT_TYPE, persistent=True, headers=headers, **_names(message)
        )
        publisher = self._publisher
        while not publisher.lost.is_set():
            try:
                await publisher.publish_confirmed(*target, header, message.body)
            except ServiceError as error:
                _log.warning("event.waits", queue=self.queue_name, reason=error.reason)
                await asyncio.sleep(_BROKER_DELAY)
            else:
                return True
        return False


def _attempt(message: Delivered) -> int:
    """Which try this was, from 1; a foreign header that says nonsense counts for none."""
    attempt = message.headers.get(topology.ATTEMPT)
    return attempt if isinstance(attempt, int) and 0 < attempt < 2**31 else 1


def _names(message: Delivered) -> dict[str, Any]:
    try:
        event = decode(Event, message.body)
    except ServiceError:
        return {}
    return {"message_id": _cut(event.id), "type_": _cut(event.type)}


def _cut(text: str) -> str:
    """What AMQP has room for: 255 bytes (4.2.5.3)."""
    return text.encode()[:255].decode(errors="ignore")
