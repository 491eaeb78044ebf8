"""The broker bounds a compromised account that floods its own exchanges."""

import asyncio
from collections.abc import AsyncIterator, Callable

import aio_pika
import httpx
import pytest
from aiormq.exceptions import AMQPError

from postbus.bus.v1 import Event
from shared.errors import ServiceError
from shared.wire import decode
from tests.buses import opened_bus
from tests.conftest import new_vhost
from tools.accounts import broker
from tools.accounts.broker import set_up_broker
from tools.accounts.rights import Rights
from tools.servers.addresses import with_account

Unique = Callable[[str], str]

BOUND = 1_000_000
SIZE = 100_000


@pytest.fixture
async def bounded_vhost(
    run_id: str, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    """A virtual host that limits each queue to one megabyte."""
    bounds = {**broker._BOUNDS, "definition": {"max-length-bytes": BOUND}}
    monkeypatch.setattr(broker, "_BOUNDS", bounds)
    async with new_vhost(unique(f"{run_id}_bounded")) as url:
        yield url


async def test_events_that_a_full_queue_refuses_stay_with_their_owner(
    bounded_vhost: str, unique: Unique
) -> None:
    type_, name = unique("postbus.users.v1.Event"), unique("posts.")
    handled, release = list[str](), asyncio.Event()

    async def consume(body: bytes) -> None:
        await release.wait()
        handled.append(decode(Event, body).id)

    async with (
        opened_bus(bounded_vhost, "users") as users,
        opened_bus(bounded_vhost, "posts") as posts,
    ):
        subscription = await posts.subscribe([type_], consume, queue=name)
        waiting = [Event(id=str(each), type=type_, data=bytes(SIZE)) for each in range(100)]
        published = 0

        async def publish_all() -> None:
            nonlocal published
            for event in waiting:
                await users.publish(event)
                published += 1

        with pytest.raises(ServiceError, match="EVENT_REFUSED"):
            await publish_all()
        assert BOUND // SIZE <= published < 32 + 2 * BOUND // SIZE  # the prefetch counts, too

        release.set()
        async with asyncio.timeout(20):
            for event in waiting[published:]:  # as the relay does
                while True:
                    try:
                        await users.publish(event)
                    except ServiceError as error:
                        assert error.reason == "EVENT_REFUSED"  # noqa: PT017
                        await asyncio.sleep(0.02)
                    else:
                        break
            while len(set(handled)) < len(waiting):  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.02)
        await subscription.cancel()


async def test_queue_that_an_account_makes_itself_is_bounded(
    bounded_vhost: str, unique: Unique
) -> None:
    async with await aio_pika.connect(bounded_vhost) as connection:
        channel = await connection.channel()
        for arguments in ({}, {"x-queue-type": "quorum"}):
            queue = await channel.declare_queue(
                unique("users.junk."), durable=True, arguments=dict(arguments)
            )
            for _ in range(3 * BOUND // SIZE):
                await channel.default_exchange.publish(aio_pika.Message(bytes(SIZE)), queue.name)
            left = await channel.declare_queue(queue.name, passive=True)
            assert left.declaration_result.message_count is not None
            assert left.declaration_result.message_count <= BOUND // SIZE
            await queue.delete(if_unused=False, if_empty=False)


async def test_connections_of_an_account_are_bounded(
    amqp_management_url: str,
    bounded_vhost: str,
    unique: Unique,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert broker._ACCOUNT_LIMITS == {"max-connections": 1_000, "max-channels": 20_000}
    monkeypatch.setattr(broker, "_ACCOUNT_LIMITS", {"max-connections": 2, "max-channels": 3})
    account = unique("greedy")
    vhost = httpx.URL(bounded_vhost).path[1:]
    none = Rights(configure="^$", write="^$", read="^$")
    await asyncio.to_thread(
        set_up_broker,
        amqp_management_url,
        vhost=vhost,
        rights={account: none},
        passwords={account: "x"},
    )
    url, opened = with_account(bounded_vhost, account, "x"), list[aio_pika.abc.AbstractConnection]()
    channels = 0

    async def use_up() -> None:
        nonlocal channels
        while True:
            await opened[-1].channel()
            channels += 1

    try:
        for _ in range(2):
            opened.append(await aio_pika.connect(url))
        with pytest.raises(AMQPError):
            await aio_pika.connect(url)
        with pytest.raises(AMQPError):
            await use_up()
        assert channels == 3
    finally:
        for each in opened:
            await each.close()
        async with httpx.AsyncClient(base_url=amqp_management_url) as management:
            (await management.delete(f"/api/users/{account}")).raise_for_status()
