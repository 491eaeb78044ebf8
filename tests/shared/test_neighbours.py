"""Messages of a service that is not entitled to send them, and services that are missing."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from structlog.testing import capture_logs

from postbus.bus.v1 import Batch, Completed, Control, Event, Outcome, ProbeAnswer, Reply
from shared.bus.amqp import publishers as publishers_module
from shared.bus.amqp.amqp_bus import AmqpBus
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.lost_calls import Probe
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.message_properties import properties
from shared.bus.message_bus import Failure
from shared.errors import ServiceError
from shared.security_log import SecurityEvent
from shared.wire import decode, encode
from tests.buses import a_call, opened_bus
from tests.messages import CALLS, CONTROL, EVENTS, message, publish_until_routed, reply_queue

Unique = Callable[[str], str]


@asynccontextmanager
async def opened(vhost: str, service: str = "test") -> AsyncIterator[AmqpBus]:
    async with opened_bus(vhost, service, delays=(0.02,), keep_events=True) as bus:
        yield bus


@pytest.fixture
async def bus(vhost: str) -> AsyncIterator[AmqpBus]:
    async with opened(vhost) as bus:
        yield bus


@pytest.fixture
async def channel(vhost: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(vhost) as connection:
        yield await connection.channel()


async def take(channel: AbstractChannel, queue: str) -> AbstractIncomingMessage:
    """Wait for a message of a queue and return it."""
    source = await channel.get_queue(queue, ensure=False)
    async with asyncio.timeout(5):
        while (found := await source.get(fail=False)) is None:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.02)
    await found.ack()
    return found


def recorded(handled: list[str]) -> Callable[[str, bytes, str], Awaitable[bytes]]:
    """Return a handler of calls that records their routes."""

    async def handler(route: str, _body: bytes, _service: str) -> bytes:
        handled.append(route)
        return encode(Reply(payload=b"here"))

    return handler


async def test_every_message_names_its_sender(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique
) -> None:
    route, event = unique("postbus.test.v1.Route"), unique("postbus.test.v1.Event")
    queue, name = await channel.declare_queue(exclusive=True), unique("queue.")
    for exchange, key in ((CALLS, route), (CONTROL, route), (EVENTS, event)):
        await queue.bind(exchange, key)

    async def refuse(_body: bytes) -> Failure | None:
        return Failure(reason="BAD", message="Bad.", retry=False)

    subscription = await bus.subscribe([event], refuse, queue=name)
    call = asyncio.create_task(bus.call(route, a_call()))
    await bus.publish(Event(id="1", type=event))
    found = [await take(channel, queue.name) for _ in range(2)]
    call.cancel()
    found += [await take(channel, queue.name), await take(channel, f"{name}.dead")]

    assert [each.user_id for each in found] == ["test"] * 4
    assert str(found[0].reply_to or found[1].reply_to).startswith("test.replies.")
    await subscription.cancel()


@pytest.mark.parametrize("retried", [False, True], ids=["event", "retry"])
async def test_event_of_another_service_than_its_owner_is_a_dead_letter(
    vhost: str, channel: AbstractChannel, unique: Unique, retried: bool
) -> None:
    event, name, handled = unique("postbus.owner.v1.Event"), unique("queue."), list[str]()

    async def keep(body: bytes) -> Failure | None:
        handled.append(decode(Event, body).id)
        return None

    async with opened_bus(vhost, "owner") as owner, opened(vhost) as consumer:
        subscription = await consumer.subscribe([event], keep, queue=name)
        exchange = await channel.get_exchange(
            "postbus.retry.test" if retried else "postbus.events.owner"
        )
        for sender in ("neighbour", None):
            forged = aio_pika.Message(encode(Event(id="forged", type=event)), user_id=sender)
            await exchange.publish(forged, name if retried else event)
        own_type = Event(id="forged", type=unique("postbus.neighbour.v1.Event"))
        await exchange.publish(
            aio_pika.Message(encode(own_type), user_id="owner"), name if retried else event
        )
        await owner.publish(Event(id="genuine", type=event))

        letters = [await take(channel, f"{name}.dead") for _ in range(3)]
        assert {each.headers["x-postbus-reason"] for each in letters} == {"FORGED"}
        assert handled == ["genuine"]
        assert consumer.security_log.counts == {SecurityEvent.SENDER_REFUSED: 3}
        await subscription.cancel()


async def test_delayed_event_of_the_old_topology_is_handled(
    vhost: str, channel: AbstractChannel, unique: Unique
) -> None:
    """The old delay queues have no accounts, and send to the default exchange."""
    event, name, handled = unique("postbus.owner.v1.Event"), unique("queue."), asyncio.Event()
    arguments: dict[str, str | int] = {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": name,
        "x-message-ttl": 100,
    }
    delay = f"postbus.delay.{unique('')}ms"
    await channel.declare_queue(delay, durable=True, arguments=dict(arguments))

    async def keep(_body: bytes) -> Failure | None:
        handled.set()
        return None

    async with opened(vhost) as bus:
        subscription = await bus.subscribe([event], keep, queue=name)
        old = aio_pika.Message(encode(Event(id="1", type=event)))
        await channel.default_exchange.publish(old, delay)
        async with asyncio.timeout(5):
            await handled.wait()
        await subscription.cancel()


async def test_reader_of_a_stream_skips_events_of_another_service_than_their_owner(
    vhost: str, channel: AbstractChannel, unique: Unique
) -> None:
    event, handled = unique("postbus.owner.v1.Event"), asyncio.Queue[str]()

    async def keep(body: bytes) -> Failure | None:
        handled.put_nowait(decode(Event, body).id)
        return None

    async with opened_bus(vhost, "owner") as owner, opened(vhost) as reader:
        subscription = await reader.read_stream(unique("stream."), [event], keep, seconds=60)
        exchange = await channel.get_exchange("postbus.events.owner")
        forged = aio_pika.Message(encode(Event(id="forged", type=event)), user_id="neighbour")
        await exchange.publish(forged, event)
        await owner.publish(Event(id="genuine", type=event))

        async with asyncio.timeout(5):
            assert await handled.get() == "genuine"
        assert reader.security_log.counts == {SecurityEvent.SENDER_REFUSED: 1}
        await subscription.cancel()


@pytest.mark.parametrize(
    ("user_id", "reply_to"),
    [(None, "test.replies.x"), ("test", ""), ("other", "test.x")],
)
async def test_call_without_a_proven_sender_is_dropped(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique, user_id: str | None, reply_to: str
) -> None:
    route, handled = unique("postbus.test.v1.Route"), list[str]()
    server = await bus.serve(unique("queue."), [route], recorded(handled))
    exchange = await channel.get_exchange(CALLS)

    with capture_logs() as lines:
        for _ in range(20):
            forged = aio_pika.Message(a_call().request, user_id=user_id, reply_to=reply_to or None)
            await exchange.publish(forged, route)
        assert (await bus.call(route, a_call())).payload == b"here"

    assert handled == [route]
    fields = {"kind": "call", "name": route, "log_level": "info"}
    fields |= {"sender": user_id} if user_id else {}
    assert lines == [{"event": "security.sender_refused", **fields}] * 20
    await server.cancel()


async def test_call_of_a_service_without_an_exchange_for_replies_is_dropped(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique
) -> None:
    """A message of the service itself is a call that a stopping server has handed on."""
    route, handled = unique("postbus.test.v1.Route"), list[str]()
    server = await bus.serve(unique("queue."), [route], recorded(handled))
    exchange = await channel.get_exchange(CALLS)

    with capture_logs() as lines:
        for _ in range(20):
            sent = message(a_call().request, reply_to="other.replies.x")
            await exchange.publish(sent, route)
        assert (await bus.call(route, a_call())).payload == b"here"

    assert handled == [route]
    assert [line["event"] for line in lines] == ["call.dropped"]
    await server.cancel()


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batch"])
async def test_reply_of_another_service_than_the_called_one_is_refused(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique, batched: bool
) -> None:
    """A service that has learned a correlation id cannot reply in place of the called one."""
    route, begun, release = unique("postbus.test.v1.Route"), asyncio.Event(), asyncio.Event()

    async def hold(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        await release.wait()
        return encode(Reply(payload=b"genuine"))

    server = await bus.serve(unique("queue."), [route], hold)
    calling = asyncio.create_task(bus.call(route, a_call()))
    async with asyncio.timeout(5):
        await begun.wait()
    assert bus._session is not None
    [correlation_id], reply_to = bus._session.rpc._pending.calls, bus._session.rpc._reply_to
    forged = encode(Reply(payload=b"forged"))
    if batched:
        forged = encode(Batch(correlation_ids=[correlation_id], messages=[forged]))
    replies = await channel.get_exchange("postbus.replies.test")
    for sender in ("neighbour", None):
        sent = aio_pika.Message(
            forged, user_id=sender, correlation_id=None if batched else correlation_id
        )
        await replies.publish(sent, reply_to)
    async with asyncio.timeout(5):
        while bus.security_log.counts[SecurityEvent.SENDER_REFUSED] < 2:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.01)
    release.set()

    assert (await calling).payload == b"genuine"
    await server.cancel()


async def test_replies_of_another_service_are_no_part_of_a_stream_or_a_broadcast(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique
) -> None:
    route, begun, release = unique("postbus.test.v1.Route"), asyncio.Event(), asyncio.Event()

    async def hold(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        begun.set()
        await release.wait()
        yield encode(Reply(payload=b"genuine", sequence=1))
        yield encode(Reply(completed=Completed(), sequence=2))

    async def collect() -> list[bytes]:
        return [payload async for payload in bus.stream(route, a_call())]

    server = await bus.serve(unique("queue."), [route], hold)
    streaming = asyncio.create_task(collect())
    broadcasting = asyncio.create_task(bus.broadcast(route, a_call(seconds=0.5)))
    async with asyncio.timeout(5):
        await begun.wait()
    session = bus._session
    assert session is not None
    replies = await channel.get_exchange("postbus.replies.test")
    forged = encode(Reply(payload=b"forged", sequence=1))
    for id_ in (*session.rpc._pending.streams, *session.rpc._pending.broadcasts):
        sent = aio_pika.Message(forged, user_id="neighbour", correlation_id=id_)
        await replies.publish(sent, session.rpc._reply_to)

    assert await broadcasting == []
    release.set()
    assert await streaming == [b"genuine"]
    assert bus.security_log.counts == {SecurityEvent.SENDER_REFUSED: 2}
    await server.cancel()


async def test_answer_of_another_service_to_a_probe_is_refused(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique
) -> None:
    """It could make a caller give up a call that its worker still executes."""
    session, now = bus._session, time.monotonic()
    assert session is not None
    lost_calls = session.rpc._lost_calls
    lost_calls.stop()
    probe = lost_calls._probes["probe"] = Probe(unique("postbus.test.v1.Route"), now, now - 9)
    replies = await channel.get_exchange("postbus.replies.test")
    for sender, age in (("neighbour", 1), ("test", 0)):
        answer = encode(ProbeAnswer(queue_age_ms=age, held=[sender]))
        sent = aio_pika.Message(answer, user_id=sender, correlation_id="probe")
        await replies.publish(sent, session.rpc._reply_to)
    async with asyncio.timeout(5):
        while not probe.held:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.01)

    assert (probe.held, probe.recreated) == ({"test"}, False)
    assert bus.security_log.counts == {SecurityEvent.SENDER_REFUSED: 1}


async def test_handler_gets_the_service_that_calls(
    vhost: str, bus: AmqpBus, unique: Unique
) -> None:
    """A call that a stopping server hands on keeps its sender, which the message does not name."""
    route, queue, services = unique("postbus.test.v1.Route"), unique("queue."), list[str]()
    release, handed_on = asyncio.Event(), asyncio.Event()

    async def hold(_route: str, _body: bytes, service: str) -> bytes:
        services.append(f"first {service}")
        await release.wait()
        return encode(Reply(payload=b"here"))

    async def record(_route: str, _body: bytes, service: str) -> bytes:
        services.append(service)
        handed_on.set()
        return encode(Reply(payload=b"here"))

    async with opened(vhost, "neighbour") as neighbour, opened(vhost) as second:
        first = await bus.serve(queue, [route], hold, concurrency=1)
        calls = asyncio.gather(*(neighbour.call(route, a_call()) for _ in range(2)))
        async with asyncio.timeout(5):
            while not services:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.01)
            server = await second.serve(queue, [route], record)
            stopping = asyncio.create_task(first.cancel())
            await handed_on.wait()
        release.set()
        await asyncio.gather(calls, stopping)
        await bus.call(route, a_call())

        assert services == ["first neighbour", "neighbour", "test"]
        await server.cancel()


async def test_control_message_without_a_proven_sender_is_ignored(
    bus: AmqpBus, channel: AbstractChannel, unique: Unique
) -> None:
    route, begun, release = unique("postbus.test.v1.Route"), asyncio.Event(), asyncio.Event()

    async def hold(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        await release.wait()
        return encode(Reply(payload=b"here"))

    server = await bus.serve(unique("queue."), [route], hold)
    replies = await reply_queue(channel)
    sent = message(a_call().request, reply_to=replies.name, correlation_id="1")
    await (await channel.get_exchange(CALLS)).publish(sent, route)
    await begun.wait()
    cancel = encode(Control(reply_to=replies.name, correlation_id="1", cancel=True))
    controls = await channel.get_exchange(CONTROL)
    await controls.publish(aio_pika.Message(cancel, user_id="neighbour"), route)
    await controls.publish(aio_pika.Message(cancel), route)
    await bus.broadcast(route, a_call(seconds=0.2))  # arrives after the cancellations
    release.set()

    assert decode(Reply, (await take(channel, replies.name)).body).payload == b"here"
    await server.cancel()


async def answered(bus: AmqpBus, route: str) -> bytes:
    """Repeat a call until it has a route, and return its response."""
    while True:
        try:
            return (await bus.call(route, a_call())).payload
        except ServiceError as error:
            assert error.reason == "NO_ROUTE"  # noqa: PT017
            await asyncio.sleep(0.05)


async def test_missing_exchange_of_a_service_is_no_route_for_that_service_only(
    bus: AmqpBus, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    server = await bus.serve(unique("queue."), [route], recorded([]))
    session, missing = bus._session, f"postbus.{unique('missing')}.v1.Route"

    for _ in range(3):
        with pytest.raises(ServiceError, match="NO_ROUTE"):
            await bus.call(missing, a_call())
        assert (await bus.call(route, a_call())).payload == b"here"
    await bus.broadcast(missing, a_call(seconds=0.1))
    assert (await bus.call(route, a_call())).payload == b"here"

    assert bus._session is session
    await server.cancel()


async def test_loss_of_the_channel_to_a_service_fails_only_the_calls_to_it(
    vhost: str, bus: AmqpBus, unique: Unique
) -> None:
    routes = [f"postbus.{service}.v1.{unique('Route')}" for service in ("owner", "test")]
    begun, release = asyncio.Queue[str](), asyncio.Event()

    async def hold(route: str, _body: bytes, _service: str) -> bytes:
        begun.put_nowait(route)
        await release.wait()
        return encode(Reply(payload=b"late"))

    async def hold_stream(route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        begun.put_nowait(route)
        await release.wait()
        yield encode(Reply(payload=b"late", sequence=1))
        yield encode(Reply(completed=Completed(), sequence=2))

    async def streamed(route: str) -> list[bytes]:
        return [payload async for payload in bus.stream(route, a_call())]

    async with opened_bus(vhost, "owner") as owner, asyncio.timeout(10):
        for server, route in zip((owner, bus), routes, strict=True):
            await server.serve(unique("queue."), [route], hold)
            await server.serve(unique("queue."), [f"{route}s"], hold_stream)
        calls = [asyncio.create_task(bus.call(route, a_call())) for route in routes]
        streams = [asyncio.create_task(streamed(f"{route}s")) for route in routes]
        for _ in (*calls, *streams):
            await begun.get()
        session = bus._session
        assert session is not None
        lost = await session.publishers.open("postbus.calls.owner")
        lost.publish(unique("no.exchange."), "", properties(""), b"")  # the broker closes it

        for failing in (calls[0], streams[0]):
            with pytest.raises(ServiceError) as raised:
                await failing
            assert (raised.value.reason, raised.value.outcome) == (
                "CONNECTION_LOST",
                Outcome.UNKNOWN,
            )
        release.set()
        assert (await calls[1]).payload == b"late"
        assert await streams[1] == [b"late"]
        assert await answered(bus, routes[0])  # on a new channel
        assert bus._session is session


async def test_service_that_starts_later_is_called(
    vhost: str, bus: AmqpBus, unique: Unique
) -> None:
    service = unique("late")
    route = f"postbus.{service}.v1.Route"
    with pytest.raises(ServiceError, match="NO_ROUTE"):
        await bus.call(route, a_call())

    async with opened_bus(vhost, service) as late:
        server = await late.serve("late", [route], recorded([]))
        async with asyncio.timeout(5):
            assert await answered(bus, route)
        await server.cancel()


async def test_consumer_of_a_service_that_starts_later_gets_its_events(
    vhost: str, bus: AmqpBus, unique: Unique
) -> None:
    service, handled = unique("late"), asyncio.Queue[str]()
    event = f"postbus.{service}.v1.Event"

    async def keep(body: bytes) -> Failure | None:
        handled.put_nowait(decode(Event, body).id)
        return None

    named = await bus.subscribe([event], keep, queue=unique("queue."))
    unnamed = await bus.subscribe([event], keep)
    session = bus._session
    async with opened_bus(vhost, service) as late, asyncio.timeout(15):
        for number in range(40):
            await publish_until_routed(late, Event(id=str(number), type=event))
            await asyncio.sleep(0.05)
        received = set[str]()
        while received != {str(number) for number in range(40)}:
            received.add(await handled.get())
    assert bus._session is session
    await asyncio.gather(named.cancel(), unnamed.cancel())


async def test_number_of_channels_to_other_services_is_bounded(
    bus: AmqpBus, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publishers_module._MAX_CHANNELS == 64
    monkeypatch.setattr(publishers_module, "_MAX_CHANNELS", 0)
    with pytest.raises(ServiceError, match="NO_ROUTE"):
        await bus.call(unique("postbus.test.v1.Route"), a_call())


async def test_method_of_one_of_two_contracts_is_called_at_the_server_that_knows_it(
    vhost: str, unique: Unique
) -> None:
    queue = unique("queue.")
    old, new = unique("postbus.test.v1.Route"), unique("postbus.test.v1.Route")
    by_old, by_new = list[str](), list[str]()
    async with opened(vhost) as first, opened(vhost) as second:
        older = await first.serve(queue, [old], recorded(by_old))
        newer = await second.serve(queue, [old, new], recorded(by_new))

        for _ in range(20):
            assert (await first.call(new, a_call())).payload == b"here"
            await first.call(old, a_call())
        await newer.cancel()
        with pytest.raises(ServiceError, match="NO_ROUTE"):
            await first.call(new, a_call())

        assert set(by_old) == {old}
        assert by_new.count(new) == 20
        assert old in by_new
        await older.cancel()


async def test_channel_of_a_missing_exchange_is_opened_twice_a_second_at_most(
    bus: AmqpBus, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, channel = list[float](), BrokerConnection.channel

    async def counted(self: BrokerConnection, **options: Any) -> MessageChannel:
        if "missing" in options.get("exchange", ""):
            opened.append(time.monotonic())
        return await channel(self, **options)

    monkeypatch.setattr(BrokerConnection, "channel", counted)
    route, end = f"postbus.{unique('missing')}.v1.Route", time.monotonic() + 1.2
    while time.monotonic() < end:
        with pytest.raises(ServiceError, match="NO_ROUTE"):
            await bus.call(route, a_call())

    assert 1 <= len(opened) <= 3
