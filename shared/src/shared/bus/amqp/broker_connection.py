"""One connection to RabbitMQ: aio-pika's, with lanes for messages."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, Literal, cast

from aio_pika import Connection
from aio_pika.abc import AbstractChannel
from aiormq.channel import Channel
from aiormq.exceptions import AMQPError
from yarl import URL

from shared.bus.amqp.message_channel import FrameLane, Lane
from shared.bus.amqp.pika_lane import PikaLane
from shared.bus.amqp.transport import Factory, Transport

__all__ = ["BROKER_ERRORS", "Link", "Plane", "broker_errors"]

BROKER_ERRORS: Final = (AMQPError, OSError, RuntimeError, TimeoutError)
"""What aio-pika raises while the broker is away (RuntimeError: a channel that is closed)."""


@contextmanager
def broker_errors() -> Iterator[None]:
    """What aio-pika raises inside is one of BROKER_ERRORS.

    Where heartbeats stay away, aiormq cancels what waits for an answer (7.2.4): whoever waits has
    not been cancelled, and must not end.
    """
    task = asyncio.current_task()
    cancelling = task.cancelling() if task else 0
    try:
        yield
    except asyncio.CancelledError:
        if task is None or task.cancelling() > cancelling:
            raise
        raise ConnectionError("the broker is away") from None


Plane = Literal["frames", "aio-pika"]
"""Who carries messages: our own frames, or aio-pika."""

_FRAME_OVERHEAD: Final = 8
_HEARTBEAT: Final = 10
_CONNECT_TIMEOUT: Final = 5


class Link:
    """A connection; `lost` is set once it, a channel or a consumer of it has gone."""

    def __init__(self, connection: Connection, transport: Transport, plane: Plane) -> None:
        self.lost = asyncio.Event()
        self._connection = connection
        self._transport = transport
        self._plane = plane
        self._lanes: list[Lane] = []
        self._on_lost: Callable[[], None] = lambda: None
        connection.close_callbacks.add(self.fail)
        transport.on_lost = self.fail

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, name: str, plane: Plane) -> AsyncIterator["Link"]:
        """Connect under the connection name `name`; raises BROKER_ERRORS."""
        connection = Connection(
            URL(url).update_query(heartbeat=_HEARTBEAT), client_properties={"connection_name": name}
        )
        connection.kwargs["transport_factory"] = factory = Factory()
        link = None
        try:
            await connection.connect(timeout=_CONNECT_TIMEOUT)
            link = cls(connection, factory.transport, plane)
            yield link
        finally:
            if link is not None:
                link.fail()
            with suppress(*BROKER_ERRORS):
                await asyncio.wait_for(connection.close(), 1)

    @property
    def blocked(self) -> bool:
        """Whether the broker takes no messages at the moment, for want of memory or disk."""
        return self._transport.blocked

    async def channel(
        self,
        *,
        confirms: bool = False,
        mandatory: bool = False,
        prefetch: int = 0,
        on_lost: Callable[..., None] | None = None,
    ) -> tuple[AbstractChannel, Lane]:
        """Open a channel and its lane.

        One with `confirms` is for confirmed messages, one with `mandatory` for mandatory ones.
        If the channel or its consumer is lost, `on_lost` is called; without one, the link fails.
        """
        lost = on_lost or self.fail
        slow = self._plane == "aio-pika"  # aiormq tells what was returned only with confirms
        channel = await self._connection.channel(
            publisher_confirms=confirms or (mandatory and slow), on_return_raises=mandatory and slow
        )
        channel.close_callbacks.add(lost)
        underlay = cast("Channel", await channel.get_underlay_channel())
        self._transport.frame_max = underlay.max_content_size + _FRAME_OVERHEAD
        underlay.on_consumer_cancel_callbacks.add(lost)
        if prefetch:
            await channel.set_qos(prefetch)
        lane = PikaLane(underlay) if slow else FrameLane(self._transport, underlay)
        self._lanes.append(lane)
        return channel, lane

    @asynccontextmanager
    async def scratch(self) -> AsyncIterator[AbstractChannel]:
        """Open a channel that may fail without harm, with confirms, and close it at the end."""
        channel = await self._connection.channel()
        try:
            yield channel
        finally:
            if not channel.is_closed:
                await channel.close()

    async def close_channel(self, channel: AbstractChannel, lane: Lane) -> None:
        """Close a channel that is no more needed; the link lives on."""
        channel.close_callbacks.discard(self.fail)
        lane.fail()
        self._lanes.remove(lane)
        await channel.close()

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call back once the link is lost."""
        self._on_lost = callback

    def fail(self, *_reason: Any) -> None:
        """Give the link up."""
        if self.lost.is_set():
            return
        self.lost.set()
        self._on_lost()
        for lane in self._lanes:
            lane.fail()
