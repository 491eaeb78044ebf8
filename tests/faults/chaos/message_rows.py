"""Messages that no service sends: garbage, and copies of real messages."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from tests.faults.chaos.faults import management, path_of
from tests.faults.chaos.matrix import Place, Row, row

__all__ = ["MESSAGE_ROWS", "is_garbage"]

_MARK: Final = b"\xff\xff\xff\xff"
"""The begin of all garbage. No protobuf message begins with it."""
_GARBAGE: Final = (b"", _MARK, _MARK + bytes(range(256)) * 40, _MARK + bytes(2**20))
_COPIED: Final = "x-chaos-copy"
_COPIES: Final = 9


def is_garbage(body: bytes) -> bool:
    """Return whether a message is one of the row `garbage`."""
    return not body or body.startswith(_MARK)


@row("21", "garbage to every exchange, key and queue", part="rabbitmq", allowed=2)
async def garbage(place: Place) -> None:
    async with (
        management(place) as api,
        await aio_pika.connect(place.amqp_url) as connection,
    ):
        channel = await connection.channel(publisher_confirms=False)
        queues = [each["name"] for each in (await api.get(path_of(place, "queues"))).json()]
        for exchange in await _exchanges(place, "postbus."):
            path = path_of(place, "exchanges", exchange) + "/bindings/source"
            keys = {each["routing_key"] for each in (await api.get(path)).json()}
            await _publish_garbage(channel, exchange, sorted(keys))
        await _publish_garbage(channel, "", [name for name in queues if ".delay." not in name])
        for exchange in await _exchanges(place, ""):
            if exchange.endswith(".delay.1000"):
                service = exchange.partition(".")[0]
                await _publish_garbage(channel, exchange, _consumers(queues, service))
        await asyncio.sleep(3)


def _consumers(queues: Sequence[str], service: str) -> list[str]:
    """Return the queues of a service to which a delay queue can return a message."""
    dead = (name.removesuffix(".dead") for name in queues if name.endswith(".dead"))
    return [name for name in dead if name.startswith(f"{service}.")]


async def _publish_garbage(channel: AbstractChannel, exchange: str, keys: Sequence[str]) -> None:
    """Publish each kind of garbage with each key, in the names of services that may send there."""
    for number, key in enumerate(keys):
        sender = ("posts", "users", "gateway")[number % 3]
        for body in _GARBAGE:
            message = aio_pika.Message(body, user_id=sender, reply_to=f"{sender}.replies.none")
            await _exchange(channel, exchange).publish(message, key, mandatory=False)
        await asyncio.sleep(0)


@row("22", "each call and event delivered ten times, for 8 s", part="rabbitmq", allowed=2)
async def deliveries_repeated(place: Place) -> None:
    async with (
        management(place) as api,
        await aio_pika.connect(place.amqp_url) as connection,
    ):
        channel = await connection.channel(publisher_confirms=False)
        queue = await channel.declare_queue(exclusive=True)
        for exchange in await _exchanges(place, "postbus.events."):
            await queue.bind(exchange, "#")
        for exchange in await _exchanges(place, "postbus.calls."):
            path = path_of(place, "exchanges", exchange) + "/bindings/source"
            for key in {each["routing_key"] for each in (await api.get(path)).json()}:
                await queue.bind(exchange, key)

        async def copy(message: AbstractIncomingMessage) -> None:
            if _COPIED not in message.headers:
                for _ in range(_COPIES):
                    await _publish_copy(channel, message)

        await queue.consume(copy, no_ack=True)
        await asyncio.sleep(8)


async def _publish_copy(channel: AbstractChannel, message: AbstractIncomingMessage) -> None:
    exchange, key = message.exchange or "", message.routing_key or ""
    copy = aio_pika.Message(
        message.body,
        headers={**message.headers, _COPIED: True},
        **{name: getattr(message, name) for name in _PROPERTIES},
    )
    await _exchange(channel, exchange).publish(copy, key, mandatory=False)


_PROPERTIES: Final = (
    "content_type",
    "correlation_id",
    "delivery_mode",
    "expiration",
    "message_id",
    "reply_to",
    "type",
    "user_id",
)


async def _exchanges(place: Place, prefix: str) -> list[str]:
    async with management(place) as api:
        names = [each["name"] for each in (await api.get(path_of(place, "exchanges"))).json()]
    return [name for name in names if name.startswith(prefix)]


def _exchange(channel: AbstractChannel, name: str) -> Any:
    return aio_pika.Exchange(channel, name) if name else channel.default_exchange


MESSAGE_ROWS: Final[tuple[Row, ...]] = (garbage, deliveries_repeated)
