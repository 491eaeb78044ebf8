"""Peers on the bus that send too much, or try to reply to the calls of other servers."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import timedelta

import aio_pika
import pytest
import structlog.testing

from postbus import reasons
from postbus.bus.v1 import Batch, Code, Control, Event, FieldViolation, Outcome, Reply, Request
from postbus_runtime.reasons import Reason
from shared.bus.amqp import AmqpBus, message_frames
from shared.bus.amqp.message_properties import properties
from shared.bus.amqp.stream_credit import StreamCredit
from shared.bus.message_bus import CREDIT
from shared.bus.reply import error_reply
from shared.errors import ServiceError
from shared.security_log import SecurityEvent
from shared.wire import decode, encode
from tests.buses import a_call, opened_bus
from tests.messages import CALLS, CONTROL, EVENTS, REPLIES
from tests.messages import message as new_message
from tests.skipping_loop import run_without_waiting

Unique = Callable[[str], str]


@pytest.fixture
async def bus(vhost: str) -> AsyncIterator[AmqpBus]:
    async with opened_bus(vhost) as connected:
        yield connected


@pytest.fixture
async def channel(vhost: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    async with await aio_pika.connect(vhost) as connection:
        yield await connection.channel()


async def test_correlation_ids_are_128_random_bits(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(CALLS, route)
    calls = [asyncio.create_task(bus.call(route, a_call(seconds=2))) for _ in range(300)]

    async with asyncio.timeout(5), queue.iterator() as requests:
        ids = [int(str((await anext(requests)).correlation_id), 16) for _ in calls]

    assert len(set(ids)) == 300
    for bit in range(128):  # by chance 2 in 10,000,000 runs would see fewer than 100 of 300
        assert 100 <= sum(number >> bit & 1 for number in ids) <= 200
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_stream_with_replies_beyond_the_credit_is_broken(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(CALLS, route)
    replies_exchange = await channel.get_exchange(REPLIES)
    replies = bus.stream(route, a_call())
    first = asyncio.create_task(anext(replies))

    async with queue.iterator() as requests:
        request = await anext(requests)
    for sequence in range(1, 20 * CREDIT):
        message = new_message(
            encode(Reply(payload=b"x", sequence=sequence)), correlation_id=request.correlation_id
        )
        await replies_exchange.publish(message, str(request.reply_to))
    assert await first == b"x"

    # The reply to a call made now arrives after all of these.
    call = asyncio.create_task(bus.call(route, a_call()))
    async with queue.iterator() as requests:
        request = await anext(requests)
    done = new_message(encode(Reply(payload=b"y")), correlation_id=request.correlation_id)
    await replies_exchange.publish(done, str(request.reply_to))
    assert (await call).payload == b"y"

    taken = [first]

    async def take() -> None:
        async with aclosing(replies):
            async for _ in replies:
                taken.append(first)

    with pytest.raises(ServiceError, match="STREAM_BROKEN"):
        await take()
    assert len(taken) <= CREDIT + 1


def test_credit_of_a_stream_is_bounded_and_its_stalled_caller_times_out() -> None:
    async def send_without_end() -> tuple[int, float]:
        loop, sent = asyncio.get_running_loop(), 0
        credit, began = StreamCredit(), loop.time()
        credit.grant(1_000_000)
        while await credit.acquire():
            sent += 1
        return sent, loop.time() - began

    sent, seconds = run_without_waiting(send_without_end())

    assert sent == 32
    assert 29 < seconds < 32


async def test_control_that_is_too_large_is_refused(bus: AmqpBus, unique: Unique) -> None:
    route = f"postbus.bus.v1.{unique('Route')}.test"
    handled: list[int] = []

    async def answer(_route: str, body: bytes, _service: str) -> bytes:
        handled.append(len(body))
        return encode(Reply(payload=b"here"))

    server = await bus.serve(unique("queue."), [route], answer)

    with structlog.testing.capture_logs() as lines:
        assert await bus.broadcast(route, a_call(bytes(64 * 2**10), 0.3)) == []
    assert [(each["name"], each["reason"]) for each in lines] == [(route, "CONTROL_TOO_LARGE")]
    assert await bus.broadcast(route, a_call(bytes(63 * 2**10), 0.3)) == [b"here"]
    assert len(handled) == 1
    assert bus.security_log.counts[SecurityEvent.BUS_MESSAGE_REFUSED] == 1
    await server.cancel()


async def test_malformed_control_is_refused(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = f"postbus.bus.v1.{unique('Route')}.test"

    async def answer(_route: str, _body: bytes, _service: str) -> bytes:
        return encode(Reply(payload=b"here"))

    server = await bus.serve(unique("queue."), [route], answer)
    exchange = await channel.get_exchange(CONTROL)
    unknown = Control(correlation_id="unknown", reply_to="test.none", credit=5)
    malformed = [b"\xff", encode(Control(correlation_id="x" * 256)), encode(unknown)[:-1]]

    with structlog.testing.capture_logs() as lines:
        for body in (*malformed, encode(unknown)):
            await exchange.publish(new_message(body), route)
        assert await bus.broadcast(route, a_call(seconds=0.3)) == [b"here"]
    assert [(each["event"], each["name"], each["reason"]) for each in lines] == [
        ("security.bus_message_refused", route, "MALFORMED_MESSAGE"),
        ("security.bus_message_refused", route, "ID_TOO_LONG"),
        ("security.bus_message_refused", route, "MALFORMED_MESSAGE"),
    ]
    await server.cancel()


async def test_method_of_a_service_is_not_called_by_broadcast(bus: AmqpBus, unique: Unique) -> None:
    route, handled = unique("postbus.test.v1."), list[bytes]()

    async def answer(_route: str, body: bytes, _service: str) -> bytes:
        handled.append(decode(Request, body).payload)
        return encode(Reply())

    server = await bus.serve(unique("queue."), [route], answer)

    assert await bus.broadcast(route, a_call(b"all", 0.3)) == []
    await bus.call(route, a_call(b"one"))
    assert handled == [b"one"]
    await server.cancel()


async def test_second_reply_to_a_call_is_ignored(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = unique("postbus.test.v1.Route")
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(CALLS, route)

    async with asyncio.timeout(5), queue.iterator() as requests:
        for _ in range(2):
            call = asyncio.create_task(bus.call(route, a_call()))
            request = await anext(requests)
            assert request.reply_to
            assert request.correlation_id
            reply = encode(Reply(payload=b"x"))
            batch = Batch(correlation_ids=[request.correlation_id] * 50, messages=[reply] * 50)
            single = properties("", correlation_id=request.correlation_id, user_id="test")
            session = bus._session
            assert session is not None
            replies = await session.publishers.open(REPLIES)
            for _number in range(20):  # in one piece, so that they arrive at once
                replies.publish(REPLIES, request.reply_to, single, reply)
                replies.publish(
                    REPLIES, request.reply_to, properties("", user_id="test"), bytes(batch)
                )
            assert (await call).payload == b"x"
    assert bus._session is session


async def test_messages_of_more_than_16_mib_are_refused(
    bus: AmqpBus,
    channel: aio_pika.abc.AbstractChannel,
    unique: Unique,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker of the tests accepts no such message: the limit of the frames is lowered."""
    monkeypatch.setattr(message_frames, "MAX_BODY", 2**18)
    route, event, name = (
        unique("postbus.test.v1.Route"),
        unique("postbus.test.v1.Event"),
        unique("queue."),
    )
    handled = list[int]()

    async def answer(_route: str, body: bytes, _service: str) -> bytes:
        handled.append(len(body))
        return encode(Reply(payload=bytes(2**19)))

    async def consume(body: bytes) -> None:
        handled.append(len(body))

    server = await bus.serve(unique("queue."), [route], answer)
    subscription = await bus.subscribe([event], consume, queue=name)

    with pytest.raises(ServiceError) as request_refused:
        await bus.call(route, a_call(bytes(2**19)))
    assert handled == []
    with pytest.raises(ServiceError) as reply_refused:
        await bus.call(route, a_call())
    exchange = await channel.get_exchange(EVENTS)
    await exchange.publish(new_message(encode(Event(id="1", data=bytes(2**19)))), event)
    dead = await channel.get_queue(f"{name}.dead", ensure=False)
    async with asyncio.timeout(5):
        while await dead.get(fail=False, no_ack=True) is None:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.02)

    refusals = [each.value for each in (request_refused, reply_refused)]
    assert [(each.code, each.reason, each.outcome) for each in refusals] == [
        (Code.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE", Outcome.NO_EFFECT),
        (Code.OUT_OF_RANGE, "REPLY_TOO_LARGE", Outcome.UNKNOWN),
    ]
    assert len(handled) == 1
    await server.cancel()
    await subscription.cancel()


@pytest.mark.parametrize(
    ("reason", "message", "violations"),
    [
        ("BROKEN", "Broken.", 100_000),
        ("BROKEN", "x" * 1_000_000, 0),
        ("X" * 1_000_000, "Broken.", 3),
        ("\U0001f600" * 1_000_000, "\U0001f600" * 1_000_000, 100_000),
    ],
    ids=["violations", "message", "reason", "everything"],
)
def test_error_reply_is_at_most_64_kib(reason: str, message: str, violations: int) -> None:
    long = "\U0001f600" * 500
    error = ServiceError(
        Reason(reason, Code.INVALID_ARGUMENT),
        message,
        violations=[FieldViolation(field=long, rule=long, message=long)] * violations,
        outcome=Outcome.UNKNOWN,
        retry_after=2,
    )

    reply = error_reply(error, "trace")

    assert len(reply) <= 64 * 2**10
    error_message = decode(Reply, reply).error
    assert (error_message.code, error_message.outcome) == (Code.INVALID_ARGUMENT, Outcome.UNKNOWN)
    assert error_message.retry_after == timedelta(seconds=2)
    assert reason.startswith(error_message.reason)
    assert message.startswith(error_message.message)
    assert error_message.reason
    assert error_message.message


def test_error_reply_that_fits_keeps_its_violations() -> None:
    violations = [FieldViolation(field=f"tags[{n}]", rule="string.min_len") for n in range(20)]
    error = ServiceError(reasons.INVALID_FIELDS, "No.", violations=violations)

    assert decode(Reply, error_reply(error)).error.violations == violations


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_log_line_is_bounded(log_format: str) -> None:
    program = f"""
import structlog
from shared.runtime.logs import configure_logs
configure_logs("test", {log_format!r})
try:
    raise ValueError("secret" * 1_000_000)
except ValueError:
    structlog.get_logger().exception("request.failed", method="m" * 1_000_000 + "the end")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert len(run.stderr) < 40_000
    assert b"request.failed" in run.stderr
    assert b"Traceback" in run.stderr
    assert b"the end" in run.stderr
    assert b"secret" not in run.stderr
