"""Errors have the outcome NO_EFFECT only if the call cannot have had an effect."""

import asyncio
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
async def test_malformed_reply_is_an_error_with_an_unknown_outcome(reply: bytes) -> None:
    async def malformed(_route: str, _body: bytes) -> bytes:
        return reply

    bus = MemoryBus()
    await bus.serve("posts", [CREATE.name], malformed)

    with pytest.raises(ServiceError) as raised:
        await PostsServiceStub(ServiceChannel(bus)).create_post(CreatePostRequest(title="Hi"))

    assert (raised.value.code, raised.value.outcome) == (Code.INTERNAL, Outcome.UNKNOWN)


async def test_call_that_was_sent_before_the_connection_broke_has_an_unknown_outcome(
    vhost: str, unique: Callable[[str], str]
) -> None:
    """The retries are not sent, but the first call may have been executed."""
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
        call = Call.new(b"", budget=5)
        calling = asyncio.create_task(call_method(client, LIKE, call, route))
        async with asyncio.timeout(5):
            await served.wait()
        await proxy.stop()

        with pytest.raises(ServiceError) as raised:
            await calling

    assert (raised.value.reason, raised.value.outcome) == ("NOT_CONNECTED", Outcome.UNKNOWN)


def test_operation_without_a_stored_reply_has_an_unknown_outcome() -> None:
    operation = Operation(key="key", fingerprint=b"same")

    with pytest.raises(ServiceError) as raised:
        stored_reply(operation, b"same", None)

    assert (raised.value.reason, raised.value.outcome) == ("ALREADY_DONE", Outcome.UNKNOWN)
