"""Times of the AMQP transport, most of them in a loop that needs no time."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
import structlog.testing
from pydantic import SecretStr

from postbus.bus.v1 import Batch, Completed, Reply
from shared.bus.amqp import connect
from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.call_sender import CallSender
from shared.bus.amqp.frame_reader import FrameReader
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.amqp.received_messages import Message
from shared.bus.amqp.transport import Transport
from shared.errors import ServiceError
from shared.wire import encode
from tests.buses import a_call
from tests.skipping_loop import run_without_waiting

Unique = Callable[[str], str]
DELIVERY = (  # basic.deliver on channel 1, an empty header, no body
    b"\1\0\1\0\0\0\x12\0\x3c\0\x3c\0" + b"\0" * 8 + b"\0\0\0\0\0\xce"
    b"\2\0\1\0\0\0\x0e\0\x3c\0\0" + b"\0" * 8 + b"\0\0\xce"
)
HEARTBEAT = b"\x08\0\0\0\0\0\0\xce"


class Stream(asyncio.StreamReaderProtocol):
    """Records the bytes that reach aiormq."""

    def __init__(self) -> None:
        super().__init__(asyncio.StreamReader())
        self.received = list[bytes]()

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def data_received(self, data: bytes) -> None:
        self.received.append(data)


class Wire:
    """The sending side of a channel: records the frames of publications."""

    def __init__(self) -> None:
        self.sent = list[bytes]()
        self.callbacks = list[Callable[[], None]]()

    def register(self, _channel: int, _handler: object, _frame_max: int) -> None: ...

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def before_sending(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def tick(self) -> list[bytes]:
        for callback in self.callbacks:
            callback()
        sent, self.sent, self.callbacks = self.sent, [], []
        return sent


class Numbered:
    number = 1
    max_content_size = 4088


def test_delays_between_attempts_to_connect_grow_up_to_2_seconds() -> None:
    async def attempts(count: int) -> list[float]:
        with structlog.testing.capture_logs() as lines:
            async with connect(SecretStr("amqp://guest:guest@127.0.0.1:1/"), "test"):
                while len(lines) < count:  # noqa: ASYNC110  # polls
                    await asyncio.sleep(0.05)
        return [line["retry_in"] for line in lines]

    delays = run_without_waiting(attempts(8))

    assert delays[:8] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


async def test_heartbeat_is_10_seconds(vhost: str) -> None:
    async with BrokerConnection.open(vhost, "test") as connection:
        transport: Any = connection._connection.transport

        assert transport.connection.connection_tune.heartbeat == 10


def test_route_gets_batches_again_after_10_seconds() -> None:
    async def sent_batches() -> list[bool]:
        wire = Wire()
        sender = CallSender(MessageChannel(None, Numbered(), wire, "calls"), "back", "test")  # type: ignore[arg-type]  # the parts that it uses
        batched = list[bool]()
        batch = encode(Batch(correlation_ids=["unknown"], messages=[b""]))

        async def send() -> None:
            for number in range(2):
                sender.send("a.route", b"x", str(number), 5, only=False)
            batched.append(len(wire.tick()) == 1)

        await send()
        sender.resend_unbatched("a.route", batch, {})
        await send()
        await asyncio.sleep(9)
        await send()
        await asyncio.sleep(2)
        await send()
        return batched

    assert run_without_waiting(sent_batches()) == [True, False, False, True]


def test_messages_count_as_heartbeats_once_a_second() -> None:
    async def received() -> list[bytes]:
        stream = Stream()
        transport, messages = Transport(stream), list[object]()
        transport.register(1, messages.append, 2**17)
        await asyncio.sleep(5)
        for _ in range(2):
            for _ in range(3):
                transport.data_received(DELIVERY)
            await asyncio.sleep(1.1)
        assert len(messages) == 6
        return stream.received

    assert run_without_waiting(received()) == [HEARTBEAT] * 2


async def test_sender_does_not_wait_for_a_lost_connection() -> None:
    transport = Transport(Stream())
    transport.pause_writing()
    waiting = asyncio.create_task(transport.wait_writable())
    await asyncio.sleep(0)
    assert not waiting.done()

    transport.connection_lost(None)

    await asyncio.wait_for(waiting, 1)


async def test_session_keeps_nothing_of_ended_calls(vhost: str, unique: Unique) -> None:
    route, stream_route = unique("postbus.test.v1.Route"), unique("postbus.test.v1.Route")

    def handle(route: str, _body: bytes, _service: str) -> Any:
        async def reply() -> bytes:
            return encode(Reply(payload=b"x"))

        async def replies() -> AsyncGenerator[bytes, None]:
            yield encode(Reply(payload=b"x", sequence=1))
            yield encode(Reply(completed=Completed(), sequence=2))

        return replies() if route == stream_route else reply()

    async with connect(SecretStr(vhost), "test") as bus:
        server = await bus.serve(unique("queue."), [route, stream_route], handle)
        await bus.call(route, a_call())
        with pytest.raises(ServiceError):
            await bus.call(unique("postbus.test.v1.Unserved"), a_call())
        assert [each async for each in bus.stream(stream_route, a_call())] == [b"x"]
        await anext(left := bus.stream(stream_route, a_call()))
        await left.aclose()
        await bus.broadcast(route, a_call(seconds=0.05))
        assert bus._session is not None
        pending = bus._session.rpc._pending
        assert (pending.calls, pending.streams, pending.broadcasts) == ({}, {}, {})
        await server.cancel()


def test_delivery_of_these_tests_is_a_message() -> None:
    messages = list[Message]()
    reader = FrameReader(lambda _: None, lambda _: None, lambda _: None)
    reader.channels[1] = messages.append

    reader.read(DELIVERY)

    assert len(messages) == 1
