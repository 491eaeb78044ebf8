"""A second queue of a method, as an operator sees it."""

from collections.abc import Callable

import aio_pika
import httpx
from aio_pika.abc import AbstractIncomingMessage

from postbus.bus.v1 import Reply
from shared.wire import encode
from tests.people import eventually
from tests.system import System

Unique = Callable[[str], str]
METHOD = "postbus.posts.v1.PostsService.GetPost"


async def test_second_queue_of_a_method_shows_in_readiness_and_metrics(
    system: System, client: httpx.AsyncClient, unique: Unique
) -> None:
    await system.until_ready()
    account = system.accounts("posts")["POSTBUS_AMQP_URL"]
    async with await aio_pika.connect(account) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(unique("posts.second"), auto_delete=True)
        await queue.bind("postbus.calls.posts", METHOD)
        replies = await channel.get_exchange("postbus.replies.gateway", ensure=False)

        async def reply(message: AbstractIncomingMessage) -> None:
            found = aio_pika.Message(
                encode(Reply()), correlation_id=message.correlation_id, user_id="posts"
            )
            await replies.publish(found, str(message.reply_to))

        await queue.consume(reply, no_ack=True)
        await client.get("/v1/posts/none")

        async def warned() -> bool:
            ready = await client.get("/readyz")
            return ready.status_code == 200 and "gateway.calls" in ready.json()["warnings"]

        await eventually(warned)
    warning = (await client.get("/readyz")).json()["warnings"]["gateway.calls"]
    metrics = (await client.get("/metrics")).text

    assert METHOD in warning
    name = "postbus_bus_incidents_total"
    assert f'{name}{{incident="call.second_reply",instance="",worker="gateway"}} 1.0' in metrics
    assert "call.second_reply" in system.log("gateway")
