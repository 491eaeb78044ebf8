"""Errors say NO_EFFECT only if nothing can have happened."""

import asyncio
import time
from collections.abc import Callable

import httpx
import pytest
from pydantic import SecretStr

from postbus.bus.v1 import Code, Outcome, Reply
from postbus.posts.v1 import CreatePostRequest, PostsServiceStub
from postbus.registry import METHODS
from shared.bus import Call, ServiceChannel, call_method
from shared.bus.amqp import connect
from shared.bus.memory import MemoryBus
from shared.errors import ServiceError
from shared.outbox.inbox import Operation, stored_reply
from shared.wire import encode
from tests.proxy import Proxy

CREATE = METHODS["postbus.posts.v1.PostsService.CreatePost"]
LIKE = METHODS["postbus.posts.v1.PostsService.LikePost"]


@pytest.mark.parametrize("reply", [b"\xff", encode(Reply(payload=b"\xff"))])
async def test_reply_that_cannot_be_read_leaves_the_outcome_unknown(reply: bytes) -> None:
    async def malformed(_route: str, _body: bytes) -> bytes:
        return reply

    bus = MemoryBus()
    await bus.serve("posts", [CREATE.name], malformed)

    with pytest.raises(ServiceError) as raised:
        await PostsServiceStub(ServiceChannel(bus)).create_post(CreatePostRequest(title="Hi"))

    assert (raised.value.code, raised.value.outcome) == (Code.INTERNAL, Outcome.UNKNOWN)


async def test_call_that_was_sent_before_the_break_stays_unknown(
    vhost: str, unique: Callable[[str], str]
) -> None:
    """The repetitions are not sent, but the first call may have been served."""
    broker = httpx.URL(vhost)
    proxy = Proxy(broker.host, broker.port or 5672)
    await proxy.start()
    served, route = asyncio.Event(), unique("route.")

    async def never(_route: str, _body: bytes) -> bytes:
        served.set()
        await asyncio.Event().wait()
        return b""

    url = SecretStr(str(broker.copy_with(port=proxy.port)))
    async with connect(SecretStr(vhost), "server") as server, connect(url, "client") as client:
        await server.serve(unique("queue."), [route], never)
        await client.wait_ready()
        call = Call.new(b"", deadline=time.time() + 5)
        calling = asyncio.create_task(call_method(client, LIKE, call, route))
        async with asyncio.timeout(5):
            await served.wait()
        await proxy.stop()

        with pytest.raises(ServiceError) as raised:
            await calling

    assert (raised.value.reason, raised.value.outcome) == ("NOT_CONNECTED", Outcome.UNKNOWN)


def test_operation_that_was_done_before_has_had_its_effect() -> None:
    operation = Operation(key="key", fingerprint=b"same")

    with pytest.raises(ServiceError) as raised:
        stored_reply(operation, b"same", None)

    assert (raised.value.reason, raised.value.outcome) == ("ALREADY_DONE", Outcome.UNKNOWN)
