"""aio-pika without a framework, tuned: direct reply-to, no confirms, prefetch 256, bytes."""

import asyncio
import itertools

import aio_pika
import loop
from aio_pika.abc import AbstractIncomingMessage
from loop import BODY, NEW_ID, URL, closed_loop, for_ever

QUEUE = "bench.aiopika"
REPLY_TO = "amq.rabbitmq.reply-to"


async def worker() -> None:
    connection = await aio_pika.connect(URL)
    channel = await connection.channel(publisher_confirms=False)
    await channel.set_qos(prefetch_count=256)
    head = b'{"id": "' + NEW_ID.encode() + b'", '

    async def answer(message: AbstractIncomingMessage) -> None:
        reply = aio_pika.Message(head + message.body[1:], correlation_id=message.correlation_id)
        await channel.default_exchange.publish(reply, message.reply_to or "", mandatory=False)
        await message.ack()

    queue = await channel.declare_queue(QUEUE, auto_delete=True)
    await queue.consume(answer)
    await for_ever()


async def client() -> None:
    connection = await aio_pika.connect(URL)
    channel = await connection.channel(publisher_confirms=False)
    waiting: dict[str, asyncio.Future[bytes]] = {}
    ids = itertools.count()

    async def on_reply(message: AbstractIncomingMessage) -> None:
        waiting.pop(message.correlation_id or "").set_result(message.body)

    replies = await channel.get_queue(REPLY_TO, ensure=False)
    await replies.consume(on_reply, no_ack=True)

    async def call() -> bytes:
        id_ = str(next(ids))
        waiting[id_] = reply = asyncio.get_running_loop().create_future()
        request = aio_pika.Message(BODY, correlation_id=id_, reply_to=REPLY_TO)
        await channel.default_exchange.publish(request, QUEUE, mandatory=False)
        return await reply

    assert NEW_ID.encode() in await call()
    await closed_loop(call)


loop.run(worker, client)
