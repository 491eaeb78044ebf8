"""Large messages are parsed in a thread, in order, one at a time."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from threading import Event
from typing import Any

import pytest

from gateway.app import build_app
from gateway.gateway import Gateway
from gateway.large_inputs import LARGE_BYTES, SWITCH_SECONDS, read_in_thread
from shared.bus.memory import MemoryBus
from shared.identity import TokenVerifier
from tests.gateway.conftest import Socket, open_socket
from tests.tokens import TokenMaker


def unsubscribe(id_: str, **more: Any) -> dict[str, Any]:
    return {"id": id_, "unsubscribe": {"subscription": "none"}, **more}


@pytest.fixture
async def app(bus: MemoryBus, verifier: TokenVerifier) -> AsyncIterator[Gateway]:
    """A gateway that accepts large messages."""
    app = build_app(bus, verifier, max_body_bytes=2**20)
    async with app.running():
        yield app


@pytest.fixture
async def socket(app: Gateway, tokens: TokenMaker) -> AsyncIterator[Socket]:
    """An authenticated client."""
    async with open_socket(app) as socket:
        token = tokens.token("alice")
        await socket.request({"id": "a", "authenticate": {"accessToken": token}})
        yield socket


async def test_large_message_is_handled_before_later_messages(socket: Socket) -> None:
    await socket.send(unsubscribe("1", unknown="x" * LARGE_BYTES))
    for id_ in ("2", "3"):
        await socket.send(unsubscribe(id_))
    await socket.send(unsubscribe("4", unknown=[0] * LARGE_BYTES))

    received = [await socket.frame() for _ in range(4)]

    assert [each["id"] for each in received] == ["1", "2", "3", "4"]
    reasons = [each["error"]["reason"] for each in received]
    assert reasons[0] == reasons[3] == "INVALID_FIELDS"
    assert reasons[1] == reasons[2] == "UNKNOWN_SUBSCRIPTION"


@pytest.mark.parametrize(
    ("message", "id_", "reason"),
    [
        ("{" + " " * LARGE_BYTES, "", "MALFORMED_JSON"),
        (json.dumps(["x" * LARGE_BYTES]), "", "NOT_AN_OBJECT"),
        (json.dumps({"id": "1", "x": ["y"] * 25_000}), "", "INVALID_FIELDS"),
        (json.dumps({"id": "1"}) + " " * LARGE_BYTES, "1", "INVALID_FIELDS"),
        (json.dumps(unsubscribe("1")) + " " * LARGE_BYTES, "1", "UNKNOWN_SUBSCRIPTION"),
    ],
)
async def test_large_message_gets_the_same_frames_as_a_small_one(
    socket: Socket, message: str, id_: str, reason: str
) -> None:
    await socket.connection.send(message)
    received = await socket.frame()

    assert (received["id"], received["error"]["reason"]) == (id_, reason)


async def test_client_may_disconnect_while_its_message_is_parsed(
    app: Gateway, tokens: TokenMaker, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        async with open_socket(app) as socket:
            token = tokens.token("alice")
            await socket.request({"id": "a", "authenticate": {"accessToken": token}})
            await socket.send(unsubscribe("1", unknown=[0] * 19_000))
            socket.connection.transport.abort()

    failures = ("never retrieved", "Exception in callback", "Fatal error")
    assert [each for each in caplog.messages if any(text in each for text in failures)] == []


async def test_large_inputs_are_parsed_one_at_a_time() -> None:
    second_began = Event()

    def wait_for_the_second() -> bool:
        return second_began.wait(0.2)

    together, _ = await asyncio.gather(
        read_in_thread(wait_for_the_second), read_in_thread(second_began.set)
    )

    assert not together
    assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)
    assert second_began.is_set()
