"""Limits of one WebSocket client, and the ends of its connection."""

import asyncio
import gc
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Opcode

from gateway import websocket_connection as connection_module
from gateway.large_inputs import LARGE_BYTES
from gateway.socket_limits import FrameBudget, FrameBudgets, Quota, SocketLimits
from gateway.websocket import WebSocketEndpoint
from gateway.websocket_connection import WebSocketConnection
from gateway.websocket_protocol import WebSocketProtocol
from postbus import reasons
from shared.bus.memory import MemoryBus
from shared.errors import ServiceError
from tests.gateway.listening import listening
from tests.gateway.websocket_server import (
    HANDSHAKE,
    LIST,
    PUBLIC,
    Gateway,
    Make,
    closed_with,
    errors,
    masked,
    subscribe,
)

BURSTS = [2**16, 2**18, 2**20]


# Before authentication


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        ("{}", 4401, "TOKEN_MISSING"),
        ("[]", 4401, "TOKEN_MISSING"),
        ('{"id": "1", "call": {"method": "x"}}', 4401, "TOKEN_MISSING"),
        ('{"id": "1", "nonsense": {}}', 4401, "TOKEN_MISSING"),
        ('{"id": "1", "authenticate": {"accessToken": "x"}}', 4401, "TOKEN_INVALID"),
        ('{"id": "1", "authenticate": {"accessToken": ""}}', 4422, "INVALID_FIELDS"),
        ('{"id": "1", "authenticate": 5}', 4422, "INVALID_FIELDS"),
        ("{", 4422, "MALFORMED_JSON"),
        ("", 4422, "MALFORMED_JSON"),
    ],
)
async def test_invalid_first_message_gets_an_error_frame_and_closes_the_socket(
    here: Gateway, message: str, code: int, reason: str
) -> None:
    async with here.anonymous() as socket:
        await socket.connection.send(message)

        assert (await socket.frame())["error"]["reason"] == reason
        assert await socket.closed() == (code, reason)


@pytest.mark.parametrize(
    ("frame", "code", "reason"),
    [
        (masked(b"\0", Opcode.BINARY), 1003, "TEXT_ONLY"),
        (masked(b'{"id": "\xff"}'), 1007, "INVALID_UTF8"),
        (masked(b" " * 8193), 1009, None),
        (masked(b" " * 5000, fin=False) + masked(b" " * 5000, Opcode.CONT), 1009, None),
        (b"\x81\xff" + (2**63 - 1).to_bytes(8, "big"), 1009, None),
        (b"\x81\x02{}", 1002, None),
        (b"\x83\x80\0\0\0\0", 1002, None),
    ],
)
async def test_invalid_frame_closes_the_socket_with_its_code(
    here: Gateway, frame: bytes, code: int, reason: str | None
) -> None:
    """Without a reason here, the text is that of the library `websockets`."""
    reader, writer = await here.accepted()

    writer.write(frame)

    closed = await closed_with(reader)
    assert closed[0] == code
    assert closed[1] == reason or reason is None
    writer.close()


LARGE_HEAD = b"\x81\xff" + (109_000).to_bytes(8, "big") + b"\0\0\0\0"
"""The first 14 bytes of a frame with 109 kB."""


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize(
    ("frames", "code", "reason", "before"),
    [
        (b"\x81\x02{}", 1002, None, 0),
        (b"\xf1\x80\0\0\0\0", 1002, None, 0),
        (b"\x83\x80\0\0\0\0", 1002, None, 0),
        (b"\x81\xff" + (2**63 - 1).to_bytes(8, "big") + b"\0\0\0\0", 1009, None, 0),
        (LARGE_HEAD, 1009, None, 0),
        (LARGE_HEAD + b" " * 109_000, 1009, None, 0),
        (HANDSHAKE % b"", 1002, None, 0),
        (b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n", 1002, None, 0),
        (masked(b"", Opcode.BINARY), 1003, "TEXT_ONLY", 0),
        (masked(b"\xff"), 1007, "INVALID_UTF8", 0),
        (masked(b"{}"), 4401, "TOKEN_MISSING", 1),
        (masked(b"", Opcode.PING) + masked(b"{}"), 4401, "TOKEN_MISSING", 2),
        (masked(b"\x03\xe8", Opcode.CLOSE), 1000, "", 0),
    ],
    ids=[
        "unmasked",
        "reserved bits",
        "reserved opcode",
        "length beyond the limit",
        "head of a large frame",
        "large frame",
        "handshake",
        "request",
        "binary",
        "invalid UTF-8",
        "text",
        "ping and text",
        "close",
    ],
)
async def test_frames_behind_a_handshake_are_handled_after_its_response(
    here: Gateway,
    caplog: pytest.LogCaptureFixture,
    pieces: int,
    frames: bytes,
    code: int,
    reason: str | None,
    before: int,
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
    sent = HANDSHAKE % b"" + frames
    writer.write(sent[: len(sent) - (pieces - 1)])
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(sent[len(sent) - (pieces - 1) :])

    assert head.startswith(b"HTTP/1.1 101 ")
    closed = await closed_with(reader)
    assert (closed[0], closed[2]) == (code, before)
    assert closed[1] == reason or reason is None
    assert errors(caplog) == []
    writer.close()


async def test_authentication_behind_a_handshake_is_handled(here: Gateway) -> None:
    reader, writer = await here.raw()
    writer.write(masked(json.dumps(here.authenticate("alice")).encode()))

    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    _, length = await reader.readexactly(2)
    if length == 126:
        length = int.from_bytes(await reader.readexactly(2), "big")
    assert "authenticated" in json.loads(await reader.readexactly(length))
    writer.close()


async def test_frames_behind_a_refused_handshake_are_dropped(here: Gateway) -> None:
    reader, writer = await here.raw(b"Origin: https://evil.example\r\n")
    writer.write(masked(b"", Opcode.PING) + masked(b"{}") + masked(b" " * 30_000))

    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 403 ")
    assert json.loads(await reader.read())["reason"] == "ORIGIN_REFUSED"
    writer.close()


async def test_frames_behind_an_unanswered_handshake_are_bounded() -> None:
    begun, go = asyncio.Event(), asyncio.Event()
    sockets: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sockets.append(scope["state"]["socket"])
        await receive()
        begun.set()
        await go.wait()
        await send({"type": "websocket.http.response.start", "status": 503})
        await send({"type": "websocket.http.response.body", "body": b""})

    async with listening(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE % b"" + masked(b"x" * 2**24))
        await begun.wait()
        for _ in range(5_000):  # iterations of the event loop that could read more
            await asyncio.sleep(0)

        assert 0 < len(sockets[0]._received) <= 2**20
        go.set()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        writer.close()


@pytest.mark.parametrize("size", [0, LARGE_BYTES])
async def test_unexpected_exception_is_answered_with_internal_and_logged_once(
    here: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    def fail(*_: Any) -> None:
        raise RecursionError("too deep")

    async with here.user() as socket:
        monkeypatch.setattr(connection_module, "read_client_frame", fail)
        monkeypatch.setattr("gateway.websocket_frames.read_client_frame", fail)
        with capture_logs() as logs:
            await socket.connection.send('{"id": "1"}' + " " * size)
            received = await socket.frame()
        monkeypatch.undo()
        after = await socket.request({"id": "2", "call": {"method": LIST}})

    assert (received["id"], received["error"]["reason"]) == ("1", "INTERNAL")
    assert "too deep" not in json.dumps(received)
    assert [each["event"] for each in logs] == ["frame.failed"]
    assert "result" in after
    assert errors(caplog) == []


async def test_unexpected_exception_before_authentication_closes_the_socket(
    here: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr(connection_module, "read_client_frame", fail)
    async with here.anonymous() as socket:
        with capture_logs() as logs:
            await socket.send({"id": "1", "authenticate": {}})
            received = await socket.frame()

            assert await socket.closed() == (1011, "INTERNAL")

    assert received["error"]["reason"] == "INTERNAL"
    assert [each["event"] for each in logs] == ["frame.failed"]


async def test_repeated_member_with_a_deep_earlier_value_is_refused(here: Gateway) -> None:
    deep = "[" * 1000 + "]" * 1000
    async with here.user() as socket:
        for size in (0, LARGE_BYTES):
            await socket.connection.send(f'{{"id":"1","x":{deep},"x":1}}' + " " * size)
            received = await socket.frame()

            assert received["id"] == "1"
            assert [each["rule"] for each in received["error"]["violations"]] == ["nesting"]
    async with here.anonymous() as socket:
        await socket.connection.send(f'{{"authenticate":{{"a":{deep},"a":1}}}}')

        assert await socket.closed() == (4422, "INVALID_FIELDS")


async def test_call_before_authentication_is_not_parsed(
    here: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    monkeypatch.setattr(connection_module, "read_client_frame", read.append)

    async with here.anonymous() as socket:
        await socket.send({"id": "1", "call": {"request": {"@type": "x"}}})
        await socket.closed()

    assert read == []


async def test_silent_client_is_closed_although_it_sends_pings(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = await make(frames_per_second=10**6, frame_burst=10**6)
    monkeypatch.setattr(connection_module, "_AUTHENTICATION_SECONDS", 0.2)

    async with here.anonymous() as socket:
        with suppress(ConnectionClosed):
            async with asyncio.timeout(5):
                while True:
                    await (await socket.connection.ping())

    assert socket.connection.close_code == 4401
    assert socket.connection.close_reason == "TOKEN_MISSING"


# Bursts


class Measured(WebSocketProtocol):
    """Measures the CPU time of the longest step."""

    longest = 0.0

    def data_received(self, data: bytes) -> None:
        self._measure(super().data_received, data)

    def _handle_frames(self) -> None:
        self._measure(super()._handle_frames)

    def _measure(self, step: Any, *arguments: Any) -> None:
        began = time.thread_time()
        step(*arguments)
        Measured.longest = max(Measured.longest, time.thread_time() - began)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Measured]]:
    """Make the gateway measure its steps, without the garbage collector."""
    Measured.longest = 0.0
    monkeypatch.setattr("tests.gateway.listening.WebSocketProtocol", Measured)
    gc.disable()
    yield Measured
    gc.enable()


@pytest.mark.parametrize("size", BURSTS)
async def test_burst_of_an_anonymous_client_gets_one_frame_and_uses_little_cpu(
    measured: type[Measured], make: Make, size: int
) -> None:
    here = await make()
    reader, writer = await here.accepted()
    burst = masked(b"{}") * (size // 8)
    began = time.process_time()

    writer.write(burst)
    code, reason, before = await closed_with(reader)

    assert (code, reason, before) == (4401, "TOKEN_MISSING", 1)
    assert time.process_time() - began < 0.2
    assert measured.longest < 0.05
    writer.close()


@pytest.mark.parametrize("size", BURSTS)
async def test_burst_of_a_user_ends_at_the_rate_and_delays_no_other_socket(
    measured: type[Measured], make: Make, size: int
) -> None:
    here = await make()
    async with here.user() as socket, here.user("bob") as other:
        transport = socket.connection.transport
        transport.write(masked(b"{}") * (size // 8))
        await (await other.connection.ping())

        assert await socket.closed() == (4429, "TOO_MANY_FRAMES")
    assert measured.longest < 0.05


async def test_other_sockets_are_served_during_a_burst_within_the_rate(
    measured: type[Measured], make: Make
) -> None:
    here = await make(frames_per_second=10**6, frame_burst=10**6)
    async with here.user(max_queue=None) as socket, here.user("bob") as other:
        socket.connection.transport.write(masked(b"{}") * 8192)
        await (await other.connection.ping())
        await other.connection.ping()

        received = [await socket.frame() for _ in range(8192)]

    assert {received["error"]["reason"] for received in received} == {"INVALID_FIELDS"}
    assert measured.longest < 0.05


async def test_token_expires_during_a_flood(make: Make) -> None:
    here = await make(frames_per_second=10**6, frame_burst=10**6)
    async with here.anonymous() as socket:
        await socket.request(here.authenticate("alice", lifetime=timedelta(seconds=-29)))
        with suppress(ConnectionClosed):
            async with asyncio.timeout(5):
                while True:
                    await socket.request({"id": "1"})

    assert (socket.connection.close_code, socket.connection.close_reason) == (
        4401,
        "TOKEN_EXPIRED",
    )


# RateLimits


def test_budget_admits_the_burst_and_then_the_rate() -> None:
    budget = FrameBudget(rate=10, burst=5)

    assert [budget.spend(0, 100.0) for _ in range(6)] == [True] * 5 + [False]
    assert [budget.spend(0, 100.25) for _ in range(3)] == [True, True, False]
    assert [budget.spend(0, 200.0) for _ in range(6)] == [True] * 5 + [False]


def test_budget_counts_a_frame_once_more_for_each_4_kib() -> None:
    budget = FrameBudget(rate=1, burst=257)

    assert budget.spend(2**20, 0.0)
    assert not budget.spend(0, 0.5)
    assert budget.spend(0, 1.0)


@pytest.mark.parametrize(
    "frames",
    [
        masked(b"", Opcode.PING),
        masked(b"", Opcode.PONG),
        masked(b'{"id": "1"}'),
        masked(b"", Opcode.CONT, fin=False),
    ],
    ids=["pings", "pongs", "texts", "empty fragments"],
)
async def test_frames_of_every_kind_count(make: Make, frames: bytes) -> None:
    here = await make(frames_per_second=1, frame_burst=50)
    async with here.user() as socket:
        fragment = masked(b"", fin=False) if frames[0] == 0 else b""
        socket.connection.transport.write(fragment + frames * 60)

        assert await socket.closed() == (4429, "TOO_MANY_FRAMES")


async def test_frames_of_all_sockets_of_a_user_count_together(make: Make) -> None:
    here = await make(frame_burst=100, frames_per_second=1, frames_per_client=1)
    async with here.user() as first, here.user() as second, here.user("bob") as other:
        first.connection.transport.write(masked(b"", Opcode.PONG) * 90)
        await (await first.connection.ping())
        second.connection.transport.write(masked(b"", Opcode.PONG) * 90)

        assert await second.closed() == (4429, "TOO_MANY_FRAMES")
        other.connection.transport.write(masked(b"", Opcode.PONG) * 90)
        assert "error" in await other.request({"id": "1"})


async def test_frames_before_authentication_count_for_the_address(make: Make) -> None:
    here = await make(frame_burst=100, frames_per_second=1, frames_per_client=1)
    async with here.user() as user, here.anonymous() as first, here.anonymous() as second:
        first.connection.transport.write(masked(b"", Opcode.PONG) * 90)
        await (await first.connection.ping())
        second.connection.transport.write(masked(b"", Opcode.PONG) * 90)

        assert await second.closed() == (4429, "TOO_MANY_FRAMES")
        user.connection.transport.write(masked(b"", Opcode.PONG) * 90)
        assert "error" in await user.request({"id": "1"})


def test_shared_budget_outlives_its_sockets_and_has_the_burst_time_of_one_socket() -> None:
    budgets = FrameBudgets(SocketLimits(frames_per_second=8, frame_burst=16, frames_per_client=32))

    spent = [budgets.of_user("a").spend(0, 0.0) for _ in range(65)]

    assert spent == [True] * 64 + [False]
    assert budgets.of_address("a").spend(0, 0.0)


def test_number_of_shared_budgets_is_limited() -> None:
    budgets = FrameBudgets(SocketLimits(), max_budgets=2)
    first, second = budgets.of_user("a"), budgets.of_user("b")

    assert budgets.of_user("a") is first
    budgets.of_user("c")

    assert budgets.of_user("a") is first
    assert budgets.of_user("b") is not second


async def test_message_of_a_user_has_at_most_a_mebibyte(here: Gateway) -> None:
    async with here.user() as socket:
        await socket.connection.send(" " * 2**20)
        assert (await socket.frame())["error"]["reason"] == "MALFORMED_JSON"
    async with here.user() as socket:
        await socket.connection.send(" " * (2**20 + 1))
        assert (await socket.closed())[0] == 1009


# Unfinished messages


async def test_unfinished_messages_of_an_address_are_limited(here: Gateway) -> None:
    unfinished = here.services.unfinished
    unfinished._max_per_address = 1_000_000
    message = masked(b"x" * 700_000)
    async with here.user() as first, here.user() as second:
        first.connection.transport.write(message[:-1])
        async with asyncio.timeout(5):
            while unfinished.total < 600_000:  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.01)
        second.connection.transport.write(masked(b"x" * 350_000, fin=False))
        second.connection.transport.write(masked(b"x" * 350_000, Opcode.CONT)[:-1])
        assert await second.closed() == (4429, "TOO_MUCH_UNFINISHED_INPUT")
        assert unfinished.total < 800_000

        first.connection.transport.write(message[-1:])
        assert (await first.frame())["error"]["reason"] == "MALFORMED_JSON"
        assert unfinished.total == len(unfinished) == 0
        first.connection.transport.write(message[:-1])
    async with asyncio.timeout(5):
        while unfinished.total or len(unfinished):  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.01)


async def test_unfinished_messages_are_limited_in_total(here: Gateway) -> None:
    here.services.unfinished._max_total = 100_000
    async with here.user() as socket:
        socket.connection.transport.write(masked(b"x" * 700_000)[:-1])

        assert await socket.closed() == (1013, "GATEWAY_FULL")


@pytest.mark.parametrize(
    "begun",
    [masked(b"{}")[:3], masked(b"{}")[:-1], masked(b"{", fin=False), masked(b"", fin=False)],
    ids=["head", "payload", "fragment", "empty fragment"],
)
async def test_message_that_is_not_complete_in_time_closes_its_socket(
    here: Gateway, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.unfinished_message._MESSAGE_SECONDS", 0.2)
    async with here.user() as socket:
        socket.connection.transport.write(begun)

        assert await socket.closed() == (4408, "MESSAGE_TOO_SLOW")


async def test_pings_between_fragments_do_not_extend_the_time_of_a_message(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = await make(frames_per_second=10**6, frame_burst=10**6)
    monkeypatch.setattr("gateway.unfinished_message._MESSAGE_SECONDS", 0.2)
    async with here.user() as socket:
        socket.connection.transport.write(masked(b"{", fin=False))
        with suppress(ConnectionClosed):
            async with asyncio.timeout(5):
                while True:
                    await (await socket.connection.ping())

        assert await socket.closed() == (4408, "MESSAGE_TOO_SLOW")


FRAME = masked(b"{}")


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (FRAME[:5], FRAME[5:]),
        (masked(b"{", fin=False), masked(b"}", Opcode.CONT)),
    ],
    ids=["frame", "fragments"],
)
async def test_time_of_a_message_ends_with_the_message(
    here: Gateway, monkeypatch: pytest.MonkeyPatch, begin: bytes, end: bytes
) -> None:
    monkeypatch.setattr("gateway.unfinished_message._MESSAGE_SECONDS", 0.2)
    ended = asyncio.get_running_loop().time() + 0.5
    async with here.user() as socket:
        socket.connection.transport.write(begin)
        while asyncio.get_running_loop().time() < ended:
            socket.connection.transport.write(end + begin)  # never between two messages
            assert (await socket.frame())["error"]["reason"] == "INVALID_FIELDS"
            await asyncio.sleep(0.01)


# Quotas


def test_released_quota_is_free_and_keeps_no_key() -> None:
    quota = Quota(2, reasons.TOO_MANY_SOCKETS, "Too many.")
    quota.take("a")
    quota.take("a")
    with pytest.raises(ServiceError, match="TOO_MANY_SOCKETS"):
        quota.take("a")
    quota.take("b")

    for key in ("a", "b", "a"):
        quota.release(key)

    quota.take("a")
    assert len(quota) == 1


async def test_address_has_a_limit_of_sockets(make: Make) -> None:
    here = await make(sockets_per_address=2)
    async with here.anonymous(), here.anonymous():
        with pytest.raises(InvalidStatus) as refused:
            await here.anonymous().__aenter__()
    assert refused.value.response.status_code == 429
    assert json.loads(refused.value.response.body)["reason"] == "TOO_MANY_SOCKETS"
    assert refused.value.response.headers["Retry-After"] == "10"

    await here.nothing_held()
    async with here.anonymous():
        assert here.held[0] == 1


async def test_ipv6_addresses_of_a_network_count_as_one(here: Gateway) -> None:
    for _ in range(here.services.socket_limits.sockets_per_address):
        here.services.socket_quotas.addresses.take("2001:db8::/64")
    endpoint = WebSocketEndpoint(here.services)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the handshake is refused before it is read")

    scope = {"type": "websocket", "path": "/ws", "headers": [], "client": ("2001:db8::5", 1)}
    await endpoint(scope, receive, send)

    assert sent[0]["status"] == 429
    assert json.loads(sent[1]["body"])["reason"] == "TOO_MANY_SOCKETS"


async def test_user_has_a_limit_of_sockets(make: Make) -> None:
    here = await make(sockets_per_user=2)
    async with here.user(), here.user(), here.user("bob"), here.anonymous() as socket:
        received = await socket.request(here.authenticate("alice"))

        assert received["error"]["reason"] == "TOO_MANY_SOCKETS"
        assert await socket.closed() == (4429, "TOO_MANY_SOCKETS")
    await here.nothing_held()
    async with here.user():
        pass


async def test_socket_has_one_subscription_to_an_event_type(here: Gateway) -> None:
    created = "postbus.posts.v1.PostCreated"
    async with here.user() as socket:
        assert "subscribed" in await socket.request(subscribe("1", PUBLIC, PUBLIC))
        second = await socket.request(subscribe("2", created, PUBLIC))
        assert "subscribed" in await socket.request(subscribe("3", created))
        await socket.request({"id": "4", "unsubscribe": {"subscription": "1"}})
        again = await socket.request(subscribe("5", PUBLIC))

    assert second["error"]["code"] == "CODE_ALREADY_EXISTS"
    assert second["error"]["reason"] == "ALREADY_SUBSCRIBED"
    assert "subscribed" in again


async def test_id_of_a_subscription_is_taken_until_it_ends(here: Gateway) -> None:
    created = "postbus.posts.v1.PostCreated"
    async with here.user() as socket:
        await socket.request(subscribe("1", PUBLIC))
        taken = await socket.request(subscribe("1", created))
        await socket.request({"id": "2", "unsubscribe": {"subscription": "1"}})
        free = await socket.request(subscribe("1", created))

    assert taken["error"]["code"] == "CODE_ALREADY_EXISTS"
    assert taken["error"]["reason"] == "SUBSCRIPTION_ID_TAKEN"
    assert "subscribed" in free


async def test_authenticated_client_cannot_authenticate_again(here: Gateway) -> None:
    async with here.user() as socket:
        refused = await socket.request(here.authenticate("bob"))

        assert refused["error"]["code"] == "CODE_FAILED_PRECONDITION"
        assert refused["error"]["reason"] == "AUTHENTICATED_BEFORE"
        assert "result" in await socket.request({"id": "2", "call": {"method": LIST}})


async def test_subscriptions_of_a_socket_and_of_a_user_have_limits(make: Make) -> None:
    types = ["PostCreated", "PostDeleted", "PostLiked", "NotificationCreated"]
    names = [f"postbus.posts.v1.{name}" for name in types]
    here = await make(subscriptions_per_socket=2, subscriptions_per_user=3)
    async with here.user() as first, here.user() as second:
        frames = [await first.request(subscribe(str(i), names[i])) for i in range(3)]
        more = [await second.request(subscribe(str(i), names[i])) for i in range(2)]

    reasons = [frame.get("error", {}).get("reason") for frame in frames + more]
    too_many = "TOO_MANY_SUBSCRIPTIONS"
    assert reasons == [None, None, too_many, None, too_many]
    await here.nothing_held()


async def test_failed_subscription_holds_no_resources(here: Gateway, bus: MemoryBus) -> None:
    async with here.user() as socket:
        bus.ready = False
        received = await socket.request(subscribe("1", PUBLIC))

        assert received["error"]["reason"] == "EVENTS_UNAVAILABLE"
        assert here.held[2:] == (0, 0)


async def test_ended_sockets_hold_no_resources(here: Gateway) -> None:
    for ending in (b"\xff", masked(b"\xff"), masked(b"{"), b"", masked(b"", Opcode.CLOSE)):
        _, writer = await here.accepted()
        writer.write(ending)
        writer.close()
    async with here.user() as socket:
        await socket.request(subscribe("1", PUBLIC))
        socket.connection.transport.abort()
    async with here.user() as socket:
        await socket.request(subscribe("1", PUBLIC))
        await socket.send({"id": "2", "call": {"method": LIST}})
        await socket.connection.send(b"binary")
        await socket.closed()

    await here.nothing_held()


async def test_nothing_refers_to_a_connection_that_has_ended(make: Make) -> None:
    def connections() -> int:
        gc.collect()
        return sum(type(each) is WebSocketConnection for each in gc.get_objects())

    here, before = await make(), connections()
    async with here.user(), here.anonymous():
        assert connections() == before + 2

    async with asyncio.timeout(5):
        while connections() > before:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.01)


# Handshake


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1"])
async def test_page_of_another_origin_is_refused(
    here: Gateway, origin: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await here.anonymous(origin=origin).__aenter__()

    assert refused.value.response.status_code == 403
    assert json.loads(refused.value.response.body)["reason"] == "ORIGIN_REFUSED"
    await here.nothing_held()
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_own_and_allowed_origins_may_connect(here: Gateway) -> None:
    own = f"127.0.0.1:{here.port}"
    for origin in (f"http://{own}", f"https://{own}", "https://ours", None):
        async with here.anonymous(origin=origin):
            pass


async def test_supported_subprotocol_is_chosen_if_offered(here: Gateway) -> None:
    offers = ["x", "postbus.realtime.v1"]
    async with here.anonymous(subprotocols=offers) as socket:
        assert socket.connection.subprotocol == "postbus.realtime.v1"
    async with here.anonymous() as socket:
        assert socket.connection.subprotocol is None
    with pytest.raises(InvalidStatus) as refused:
        await here.anonymous(subprotocols=["x"]).__aenter__()
    assert refused.value.response.status_code == 400
    assert json.loads(refused.value.response.body)["reason"] == "SUBPROTOCOL_UNKNOWN"


async def test_head_beyond_the_limits_of_the_websocket_parser_is_431(here: Gateway) -> None:
    reader, writer = await here.raw(b"X: " + b"a" * 9000 + b"\r\n")

    async with asyncio.timeout(5):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431")
    assert json.loads(body)["reason"] == "FIELD_TOO_LARGE"
    writer.close()
