"""Calls over a WebSocket: their number, their ids and their ends."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from postbus.bus.v1 import Reply
from postbus.registry import METHODS
from shared.access_tokens import TokenVerifier
from shared.bus import Call, CallResult
from shared.bus.memory import MemoryBus
from shared.wire import encode
from tests.gateway.websocket_server import (
    LIST,
    gateway_with,
)
from tests.tokens import TokenMaker

# Calls


class Held:
    """A worker that replies once `go` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def handle(self, _route: str, _body: bytes, _service: str) -> bytes:
        await self.go.wait()
        return encode(Reply(payload=b""))


@pytest.fixture
async def held() -> AsyncIterator[tuple[MemoryBus, Held]]:
    bus, worker = MemoryBus(), Held()
    await bus.serve("everything", list(METHODS), worker.handle, concurrency=1000)
    yield bus, worker
    worker.go.set()


async def test_socket_has_at_most_64_calls_at_once(
    held: tuple[MemoryBus, Held], verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    bus, worker = held
    async with gateway_with(bus, verifier, tokens) as here, here.user() as socket:
        for number in range(65):
            await socket.send({"id": str(number), "call": {"method": LIST}})
        refused = await socket.frame()
        worker.go.set()
        frames = [await socket.frame() for _ in range(64)]

        assert (refused["id"], refused["error"]["reason"]) == ("64", "TOO_MANY_CALLS")
        assert refused["error"]["retryAfter"] == "1s"
        assert {frame["id"] for frame in frames if "result" in frame} == {
            str(number) for number in range(64)
        }
        assert "result" in await socket.request({"id": "0", "call": {"method": LIST}})


async def test_malformed_response_of_a_worker_is_internal_with_an_unknown_outcome(
    verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    async def answer(_route: str, _body: bytes, _service: str) -> bytes:
        return encode(Reply(payload=b"\x0a\x05a"))

    bus = MemoryBus()
    await bus.serve("everything", list(METHODS), answer)
    async with gateway_with(bus, verifier, tokens) as here, here.user() as socket:
        frame = await socket.request({"id": "1", "call": {"method": LIST}})

    error = frame["error"]
    assert (error["code"], error["outcome"]) == ("CODE_INTERNAL", "OUTCOME_UNKNOWN")


async def test_id_of_a_call_is_taken_until_the_call_ends(
    held: tuple[MemoryBus, Held], verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    bus, worker = held
    call = {"id": "1", "call": {"method": LIST}}
    async with gateway_with(bus, verifier, tokens) as here, here.user() as socket:
        await socket.send(call)
        taken = await socket.request(call)
        worker.go.set()
        ended = await socket.frame()

        assert taken["error"]["code"] == "CODE_ALREADY_EXISTS"
        assert taken["error"]["reason"] == "CALL_ID_TAKEN"
        assert "result" in ended
        assert "result" in await socket.request(call)


async def test_call_that_is_cancelled_twice_ends_once(
    held: tuple[MemoryBus, Held], verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    bus, worker = held
    async with gateway_with(bus, verifier, tokens) as here, here.user() as socket:
        await socket.send({"id": "1", "call": {"method": LIST}})
        for id_ in ("2", "3"):
            await socket.send({"id": id_, "cancel": {"call": "1"}})
        worker.go.set()
        await socket.send({"id": "4", "cancel": {"call": "none"}})

        received = [await socket.frame() for _ in range(3)]

    assert [(each["id"], each["error"]["reason"]) for each in received] == [
        ("1", "CANCELLED"),
        ("3", "UNKNOWN_CALL"),
        ("4", "UNKNOWN_CALL"),
    ]
    assert [each["error"].get("outcome") for each in received] == [
        "OUTCOME_UNKNOWN",
        "OUTCOME_NO_EFFECT",
        "OUTCOME_NO_EFFECT",
    ]


async def test_handler_of_a_cancelled_call_ends(
    held: tuple[MemoryBus, Held], verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    bus, _ = held
    async with gateway_with(bus, verifier, tokens) as here, here.user() as socket:
        await socket.send({"id": "1", "call": {"method": LIST}})
        await socket.request({"id": "2", "cancel": {"call": "1"}})

        async with asyncio.timeout(5):
            await asyncio.gather(*bus._servers[0].running, return_exceptions=True)


async def test_call_that_fails_unexpectedly_gets_an_error_frame(
    verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    class Bus(MemoryBus):
        async def call(self, route: str, call: Call) -> CallResult:
            raise KeyError(route)

    async with gateway_with(Bus(), verifier, tokens) as here, here.user() as socket:
        with capture_logs() as logs:
            received = await socket.request({"id": "1", "call": {"method": LIST}})

    assert (received["id"], received["error"]["reason"]) == ("1", "INTERNAL")
    assert [each["event"] for each in logs] == ["call.failed"]


async def test_disconnect_of_a_socket_cancels_its_calls(
    held: tuple[MemoryBus, Held], verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    bus, _ = held
    async with gateway_with(bus, verifier, tokens) as here:
        async with here.user() as socket:
            await socket.send({"id": "1", "call": {"method": LIST}})
            await (await socket.connection.ping())
        await here.nothing_held()
        async with asyncio.timeout(2):  # before the deadline of the call
            await asyncio.gather(*bus._servers[0].running, return_exceptions=True)
