"""WebSocket clients that do not read, close or reply, and the ends of their connections."""

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from websockets.frames import Opcode

from gateway.websocket_protocol import WebSocketProtocol
from postbus.bus.v1 import Event, Reply
from postbus.posts.v1 import ListPostsResponse
from shared.access_tokens import TokenVerifier
from shared.bus.memory import MemoryBus
from shared.wire import encode
from tests.gateway.conftest import Worker
from tests.gateway.websocket_server import (
    LIST,
    PUBLIC,
    Gateway,
    Make,
    closed_with,
    gateway_with,
    masked,
    subscribe,
)
from tests.tokens import TokenMaker

# Slow clients


def large_event(id_: str) -> Event:
    return Event(id=id_, type=PUBLIC, subject="s" * 200_000)


async def test_subscriber_that_does_not_read_is_closed_with_its_code(
    here: Gateway, bus: MemoryBus
) -> None:
    async with here.user(max_queue=1) as socket:
        await socket.request(subscribe("1", PUBLIC))
        async with asyncio.timeout(5):
            while here.held[3]:
                await bus.publish(large_event("e"))
                await asyncio.sleep(0)

        assert await socket.closed() == (4429, "CLIENT_TOO_SLOW")
    await here.nothing_held()


async def test_subscriber_that_reads_is_not_closed(here: Gateway, bus: MemoryBus) -> None:
    async with here.user() as socket:
        await socket.request(subscribe("1", PUBLIC))
        for number in range(100):
            await bus.publish(large_event(str(number)))
            assert (await socket.frame())["event"]["eventId"] == str(number)


async def test_nothing_is_read_from_a_client_that_does_not_read(make: Make, worker: Worker) -> None:
    here = await make(frames_per_second=10**6, frame_burst=10**6)
    worker.reply = Reply(payload=encode(ListPostsResponse(next_page_token="x" * 20_000)))
    calls = 1000
    async with here.user(max_queue=1) as socket:
        for number in range(calls):
            await socket.send({"id": str(number), "call": {"method": LIST}})
        with pytest.raises(TimeoutError):  # noqa: PT012  # it stays open
            async with asyncio.timeout(0.5):
                while here.held[1]:  # noqa: ASYNC110  # polls
                    await asyncio.sleep(0.01)

        assert len(worker.requests) < calls
        received = [await socket.frame() for _ in range(calls)]

    assert {received["id"] for received in received} == {str(number) for number in range(calls)}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[WebSocketProtocol]:
    """The protocol objects of the sockets that a test opens."""
    protocols: list[WebSocketProtocol] = []
    start = WebSocketProtocol.start

    def noted(self: WebSocketProtocol, *args: Any, **options: Any) -> None:
        protocols.append(self)
        start(self, *args, **options)

    monkeypatch.setattr(WebSocketProtocol, "start", noted)
    return protocols


async def test_parsed_frames_wait_until_the_client_reads_again(
    here: Gateway, started: list[WebSocketProtocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.websocket_protocol._TURN_SECONDS", -1)  # one frame in each turn
    async with here.user() as socket:
        [protocol] = started
        frame = b'{"id": "1", "unsubscribe": {"types": ["%b"]}}' % PUBLIC.encode()
        protocol.data_received(masked(frame) * 5)
        protocol.pause_writing()
        await asyncio.sleep(0)
        assert len(protocol._frames) == 4
        assert not protocol._received

        protocol.resume_writing()

        for _ in range(5):
            await socket.frame()


async def test_few_frames_are_parsed_at_a_time(
    here: Gateway, started: list[WebSocketProtocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.websocket_protocol._TURN_SECONDS", -1)
    async with here.user():
        [protocol] = started

        protocol.data_received(masked(b"", Opcode.PONG) * 10_000)

        assert 0 < len(protocol._frames) <= 170


async def test_socket_stays_open_until_the_client_has_sent_its_close_frame(
    here: Gateway, started: list[WebSocketProtocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.websocket_closing._CLOSE_SECONDS", 60)
    reader, writer = await here.accepted()
    writer.write(masked(b"{}"))
    code, reason, _ = await closed_with(reader)
    await here.nothing_held()  # the application has ended
    assert not started[0].transport.is_closing()

    writer.write(masked(code.to_bytes(2) + reason.encode(), Opcode.CLOSE))

    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


async def test_client_that_never_reads_the_close_frame_is_read_from_and_then_disconnected(
    here: Gateway,
    bus: MemoryBus,
    started: list[WebSocketProtocol],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.websocket_closing._CLOSE_SECONDS", 0.5)
    async with here.user(max_queue=1, close_timeout=0.1) as socket:
        [protocol] = started
        await socket.request(subscribe("1", PUBLIC))
        async with asyncio.timeout(5):
            while protocol.writable.is_set():
                await bus.publish(large_event("e"))
                await asyncio.sleep(0)
        protocol.data_received(masked(b"", Opcode.PONG))
        assert protocol.read_paused
        async with asyncio.timeout(5):
            while here.held[3]:
                await bus.publish(large_event("e"))
                await asyncio.sleep(0)
        assert not protocol.read_paused
        assert protocol.transport.get_write_buffer_size() > 0

        async with asyncio.timeout(5):
            while not protocol.transport.is_closing():  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.01)


async def test_gap_in_the_events_closes_the_sockets_of_subscribers(here: Gateway) -> None:
    async with here.user() as first, here.user("bob") as second:
        await first.request(subscribe("1", PUBLIC))

        here.services.subscriptions._interrupt()

        assert await first.closed() == (1013, "EVENTS_INTERRUPTED")
        assert "subscribed" in await second.request(subscribe("1", PUBLIC))


async def test_server_shutdown_closes_sockets_with_1012(
    bus: MemoryBus, verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    async with AsyncExitStack() as stack:
        async with gateway_with(bus, verifier, tokens) as here:
            socket = await stack.enter_async_context(here.user())
        assert (await socket.closed())[0] == 1012


async def test_client_that_sends_no_close_frame_is_disconnected(
    here: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.websocket_closing._CLOSE_SECONDS", 0.2)
    reader, writer = await here.accepted()
    writer.write(masked(b"{}"))
    await closed_with(reader)

    with suppress(ConnectionError):
        async with asyncio.timeout(1):
            assert await reader.read() == b""
    writer.close()


async def test_close_frame_arrives_despite_unread_input(here: Gateway) -> None:
    reader, writer = await here.accepted()
    writer.write(masked(b"x" * 9000) + bytes(2**22))

    assert (await closed_with(reader))[0] == 1009
    writer.close()


async def test_client_that_sends_no_pong_is_closed(
    bus: MemoryBus, verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    options = {"ws_ping_interval": 0.1, "ws_ping_timeout": 0.1}
    async with gateway_with(bus, verifier, tokens, server=options) as here:
        reader, writer = await here.accepted()
        assert await reader.readexactly(2) == b"\x89\x04"
        await reader.readexactly(4)

        assert await closed_with(reader) == (1011, "PING_TIMEOUT", 0)
        writer.close()
