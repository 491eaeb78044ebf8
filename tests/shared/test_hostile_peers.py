"""Peers on the bus that send too much, or try to reply to the calls of other servers."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import aio_pika
import pytest
from pydantic import SecretStr

from postbus.bus.v1 import Code, FieldViolation, Outcome, Reply
from shared.bus import Call
from shared.bus.amqp import AmqpBus, connect, rpc_server
from shared.bus.amqp.topology import CALL_EXCHANGE
from shared.bus.envelope import error_reply
from shared.bus.message_bus import CREDIT
from shared.errors import ServiceError
from shared.wire import decode, encode

Unique = Callable[[str], str]


@pytest.fixture
async def bus(vhost: str) -> AsyncIterator[AmqpBus]:
    async with connect(SecretStr(vhost), "test") as connected:
        await connected.wait_ready()
        yield connected


@pytest.fixture
async def channel(vhost: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    async with await aio_pika.connect(vhost) as connection:
        yield await connection.channel()


def a_call(payload: bytes = b"", seconds: float = 5) -> Call:
    return Call.new(payload, deadline=time.time() + seconds)


async def test_correlation_ids_are_128_random_bits(
    bus: AmqpBus, channel: aio_pika.abc.AbstractChannel, unique: Unique
) -> None:
    route = unique("route.")
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(CALL_EXCHANGE, route)
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
    route = unique("route.")
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(CALL_EXCHANGE, route)
    replies = bus.stream(route, a_call())
    first = asyncio.create_task(anext(replies))

    async with queue.iterator() as requests:
        request = await anext(requests)
    for sequence in range(1, 20 * CREDIT):
        message = aio_pika.Message(
            encode(Reply(payload=b"x", sequence=sequence)), correlation_id=request.correlation_id
        )
        await channel.default_exchange.publish(message, str(request.reply_to))
    assert await first == b"x"

    # The reply to a call made now arrives after all of these.
    call = asyncio.create_task(bus.call(route, a_call()))
    async with queue.iterator() as requests:
        request = await anext(requests)
    done = aio_pika.Message(encode(Reply(payload=b"y")), correlation_id=request.correlation_id)
    await channel.default_exchange.publish(done, str(request.reply_to))
    assert (await call).payload == b"y"

    taken = [first]

    async def take() -> None:
        async with aclosing(replies):
            async for _ in replies:
                taken.append(first)

    with pytest.raises(ServiceError, match="STREAM_BROKEN"):
        await take()
    assert len(taken) <= CREDIT + 1


async def test_credit_of_a_stream_is_bounded_and_its_stalled_caller_times_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rpc_server, "_MAX_STALL_SECONDS", 0.02)
    credit = rpc_server._StreamCredit()
    credit.grant(1_000_000)

    sent = [await credit.acquire() for _ in range(CREDIT)]

    async with asyncio.timeout(2):
        assert [*sent, await credit.acquire()] == [True] * CREDIT + [False]


async def test_control_that_is_too_large_is_ignored(bus: AmqpBus, unique: Unique) -> None:
    route = f"postbus.bus.v1.{unique('route')}"
    handled: list[int] = []

    async def answer(_route: str, body: bytes) -> bytes:
        handled.append(len(body))
        return encode(Reply(payload=b"here"))

    server = await bus.serve(unique("queue."), [route], answer)

    assert await bus.broadcast(route, a_call(bytes(64 * 2**10), 0.3)) == []
    assert await bus.broadcast(route, a_call(bytes(63 * 2**10), 0.3)) == [b"here"]
    assert len(handled) == 1
    await server.cancel()


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
    error = ServiceError(
        Code.INVALID_ARGUMENT,
        reason,
        message,
        violations=[FieldViolation(field=f"tags[{n}]", rule="r") for n in range(violations)],
        outcome=Outcome.UNKNOWN,
        retry_after=2,
    )

    reply = error_reply(error, "trace")

    assert len(reply) <= 64 * 2**10
    error_message = decode(Reply, reply).error
    assert (error_message.code, error_message.outcome) == (Code.INVALID_ARGUMENT, Outcome.UNKNOWN)
    assert error_message.retry_after.total_seconds() == 2
    assert reason.startswith(error_message.reason)
    assert message.startswith(error_message.message)
    assert error_message.reason
    assert error_message.message


def test_error_reply_that_fits_keeps_its_violations() -> None:
    violations = [FieldViolation(field=f"tags[{n}]", rule="string.min_len") for n in range(20)]
    error = ServiceError(Code.INVALID_ARGUMENT, "INVALID_FIELDS", "No.", violations=violations)

    assert decode(Reply, error_reply(error)).error.violations == violations


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_log_line_is_bounded(log_format: str) -> None:
    program = f"""
import structlog
from shared.runtime.logs import configure_logs
configure_logs("test", {log_format!r})
try:
    raise ValueError("secret" * 1_000_000 + "the end")
except ValueError:
    structlog.get_logger().exception("request.failed", method="m" * 1_000_000)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert len(run.stderr) < 40_000
    assert b"request.failed" in run.stderr
    assert b"Traceback" in run.stderr
    assert b"the end" in run.stderr
