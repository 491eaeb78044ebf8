"""Queues of the system at the broker, and their messages, for `just dlq`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from urllib.parse import quote

import aio_pika
import httpx
from aio_pika.abc import AbstractConnection, AbstractExchange, AbstractIncomingMessage
from aiormq.exceptions import AMQPError, ChannelNotFoundEntity

from shared.bus.amqp import topology
from shared.bus.amqp.broker_addresses import broker_addresses
from shared.bus.amqp.foreign_properties import accept_any_properties

__all__ = [
    "MAX_MESSAGES",
    "durable_queues",
    "messages_of",
    "open_connection",
    "open_retry_exchange",
    "return_to_consumer",
    "state_of",
]

MAX_MESSAGES: Final = 10_000
"""Messages of a queue that one command reads."""
_ANSWER_SECONDS: Final = 10.0


async def open_connection(amqp_url: str) -> AbstractConnection:
    """Connect to the first node of the broker that accepts a connection.

    Raises the error of the last one: OSError or aiormq.AMQPError.
    """
    accept_any_properties()
    *urls, last = broker_addresses(amqp_url)
    for url in urls:
        with suppress(OSError, AMQPError):
            return await aio_pika.connect(str(url))
    return await aio_pika.connect(str(last))


async def durable_queues(management_url: str, amqp_url: str) -> list[str]:
    """Return the names of the durable queues in the virtual host of `amqp_url`, without streams.

    Raises httpx.HTTPError if the management API is unavailable, or refuses the account.
    """
    vhost = broker_addresses(amqp_url)[0].path.removeprefix("/") or "/"
    async with httpx.AsyncClient(timeout=_ANSWER_SECONDS, trust_env=False) as client:
        path = f"/api/queues/{quote(vhost, safe='')}"
        response = await client.get(
            f"{management_url.rstrip('/')}{path}", params={"columns": "name,type,durable"}
        )
        queues: list[dict[str, Any]] = response.raise_for_status().json()
    return sorted(each["name"] for each in queues if each["durable"] and each["type"] != "stream")


async def state_of(connection: AbstractConnection, queue: str) -> tuple[int, int] | None:
    """Return the numbers of messages and consumers of a queue; None if it does not exist."""
    channel = await connection.channel()
    try:
        declared = (await channel.declare_queue(queue, passive=True)).declaration_result
    except ChannelNotFoundEntity:
        return None
    await channel.close()
    return declared.message_count or 0, declared.consumer_count or 0


@asynccontextmanager
async def messages_of(
    connection: AbstractConnection, queue: str
) -> AsyncIterator[list[AbstractIncomingMessage]]:
    """Fetch the messages of a queue in their order, `MAX_MESSAGES` at most.

    Messages that are not acknowledged in the block are requeued.
    """
    channel = await connection.channel()
    source = await channel.get_queue(queue, ensure=False)
    messages: list[AbstractIncomingMessage] = []
    while len(messages) < MAX_MESSAGES and (message := await source.get(fail=False)) is not None:
        messages.append(message)
    try:
        yield messages
    finally:
        await channel.close()


async def open_retry_exchange(connection: AbstractConnection, consumer: str) -> AbstractExchange:
    """Return the exchange that leads to a consumer's queue; unroutable messages raise."""
    channel = await connection.channel(on_return_raises=True)
    name = topology.exchange("retry", consumer.partition(".")[0])
    return await channel.get_exchange(name, ensure=False)


async def return_to_consumer(
    retry: AbstractExchange, message: AbstractIncomingMessage, consumer: str, **headers: Any
) -> None:
    """Publish a copy of a message to a consumer's queue, then acknowledge the message.

    PublishError if the queue does not exist: the message then stays where it is.
    """
    copy = aio_pika.Message(
        message.body,
        headers=headers,
        content_type=message.content_type,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=message.message_id,
        type=message.type,
        user_id=consumer.partition(".")[0],  # the consumer accepts retries of its own service
    )
    await retry.publish(copy, consumer)  # returns once the broker has confirmed the copy
    await message.ack()
