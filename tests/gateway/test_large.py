"""Large bodies and messages are parsed in a thread, one at a time, in turns of their clients."""

import asyncio
import gc
import json
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from threading import Event
from typing import Any

import httpx
import pytest

from gateway.app import build_app
from gateway.gateway import Gateway
from gateway.large_inputs import LARGE_BYTES, SWITCH_SECONDS, LargeInputs
from gateway.rate_limits import RateLimits, RateLimitSettings
from gateway.rate_storage import BoundedStorage
from gateway.websocket_frames import first_member_id
from shared.access_tokens import TokenVerifier
from shared.bus.memory import MemoryBus
from shared.errors import Code, Outcome, ServiceError
from tests.gateway.conftest import Worker
from tests.gateway.listening import Socket, listening, open_socket
from tests.tokens import TokenMaker

WAITING = 0.3
"""Seconds for which an input waits at least."""


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


# The waiting lines


class Blocked:
    """Large inputs; reading the first one, of the client "first", ends once `go` is set."""

    def __init__(self) -> None:
        self.inputs = LargeInputs()
        self.order: list[str] = []
        self.go = Event()
        self._tasks = [self.start("first", self._wait)]

    def _wait(self) -> None:
        assert self.go.wait(10)

    def start(
        self, client: str, read: Callable[[], Any] | None = None, *, seconds: float = 10
    ) -> asyncio.Task[Any]:
        reading = self.inputs.read(client, seconds, read or partial(self.order.append, client))
        return asyncio.create_task(reading)


@pytest.fixture
async def blocked() -> AsyncIterator[Blocked]:
    blocked = Blocked()
    await asyncio.sleep(0)
    yield blocked
    blocked.go.set()


async def test_large_inputs_are_read_one_at_a_time() -> None:
    inputs, second_began = LargeInputs(), Event()

    def wait_for_the_second() -> bool:
        return second_began.wait(0.2)

    together, _ = await asyncio.gather(
        inputs.read("a", 10, wait_for_the_second), inputs.read("b", 10, second_began.set)
    )

    assert not together
    assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)
    assert second_began.is_set()


async def test_clients_with_large_inputs_are_served_in_turn(blocked: Blocked) -> None:
    tasks = [blocked.start(client) for client in ("a", "a", "a", "b", "c", "b")]
    await asyncio.sleep(0)

    blocked.go.set()
    await asyncio.gather(*tasks)

    assert blocked.order == ["a", "b", "c", "a", "b", "a"]
    assert len(blocked.inputs) == 0


async def test_client_has_at_most_8_waiting_inputs(blocked: Blocked) -> None:
    tasks = [blocked.start("a") for _ in range(8)]
    await asyncio.sleep(0)

    with pytest.raises(ServiceError) as refused:
        await blocked.start("a")
    other = blocked.start("b")
    blocked.go.set()
    await asyncio.gather(*tasks, other)
    await blocked.start("a")

    assert (refused.value.code, refused.value.reason) == (
        Code.RESOURCE_EXHAUSTED,
        "TOO_MANY_LARGE_INPUTS",
    )
    assert refused.value.retry_after == 1
    assert blocked.order.count("a") == 9


async def test_input_that_waits_beyond_its_deadline_is_dropped(blocked: Blocked) -> None:
    with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED") as refused:
        await blocked.start("a", seconds=0.01)

    assert refused.value.outcome is Outcome.NO_EFFECT
    assert len(blocked.inputs) == 0
    blocked.go.set()
    await blocked.start("b")
    assert blocked.order == ["b"]


async def test_input_whose_reader_is_cancelled_is_dropped(blocked: Blocked) -> None:
    leaving = [blocked.start("a") for _ in range(8)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    assert blocked.inputs._next() is None  # although the tasks have not ended yet
    blocked.go.set()
    await asyncio.gather(*leaving, return_exceptions=True)
    await blocked.start("b")

    assert blocked.order == ["b"]
    assert len(blocked.inputs) == 0


async def test_error_of_a_reader_is_raised(blocked: Blocked) -> None:
    blocked.go.set()

    with pytest.raises(ValueError, match="invalid literal"):
        await blocked.start("a", lambda: int("x"))
    await blocked.start("b")


async def test_refused_input_is_freed_without_the_garbage_collector(blocked: Blocked) -> None:
    def refuse(_body: object) -> None:
        raise ValueError

    blocked.go.set()
    body = {"x"}
    freed = weakref.ref(body)
    gc.disable()
    try:
        with suppress(ValueError):
            await blocked.inputs.read("a", 10, partial(refuse, body))
        del body
        await blocked.start("b")

        assert freed() is None
    finally:
        gc.enable()


# Over REST and WebSocket, while another input is read

LARGE_POST = b'{"title":"x","body":"' + b"x" * LARGE_BYTES + b'"}'


@asynccontextmanager
async def busy(app: Gateway) -> AsyncIterator[LargeInputs]:
    """Let an input of another client take the thread."""
    inputs, go = app.large_inputs, Event()
    reading = asyncio.create_task(inputs.read("other", 20, partial(go.wait, 20)))
    await asyncio.sleep(0)
    try:
        yield inputs
    finally:
        go.set()
        await reading


async def until_waiting(inputs: LargeInputs, number: int) -> None:
    async with asyncio.timeout(5):
        while len(inputs) != number:  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.005)


@pytest.fixture
async def client(app: Gateway, tokens: TokenMaker) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of a user, over TCP."""
    headers = {
        "Authorization": f"Bearer {tokens.token('alice')}",
        "Content-Type": "application/json",
    }
    async with (
        listening(app) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers) as client,
    ):
        yield client


async def test_body_of_a_client_that_has_left_is_dropped(
    app: Gateway, client: httpx.AsyncClient
) -> None:
    async with busy(app) as inputs:
        client.headers["Request-Timeout"] = "30"
        posts = [
            asyncio.create_task(client.post("/v1/posts", content=LARGE_POST)) for _ in range(3)
        ]
        await until_waiting(inputs, 3)
        for post in posts:
            post.cancel()
        await asyncio.gather(*posts, return_exceptions=True)
        await until_waiting(inputs, 0)


async def test_time_that_a_body_waits_counts_for_the_timeout_of_its_request(
    app: Gateway, client: httpx.AsyncClient, worker: Worker
) -> None:
    async with busy(app):
        headers = {"Request-Timeout": "0.05"}
        late = await client.post("/v1/posts", content=LARGE_POST, headers=headers)
    assert (late.status_code, late.json()["reason"]) == (504, "DEADLINE_EXCEEDED")
    assert late.json()["outcome"] == "NO_EFFECT"
    assert worker.requests == []


async def test_deadline_counts_from_the_arrival_of_the_request(
    app: Gateway, client: httpx.AsyncClient, worker: Worker
) -> None:
    async with busy(app) as inputs:
        began = time.monotonic()
        post = asyncio.create_task(
            client.post("/v1/posts", content=LARGE_POST, headers={"Request-Timeout": "9"})
        )
        await until_waiting(inputs, 1)
        await asyncio.sleep(WAITING)
    await post
    [(_, request)] = worker.requests
    assert 8.999 - (time.monotonic() - began) < request.budget_ms / 1000 <= 9 - WAITING


async def test_user_with_8_waiting_bodies_gets_429(app: Gateway, client: httpx.AsyncClient) -> None:
    async with busy(app) as inputs:
        posts = [
            asyncio.create_task(client.post("/v1/posts", content=LARGE_POST)) for _ in range(8)
        ]
        await until_waiting(inputs, 8)
        refused = await client.post("/v1/posts", content=LARGE_POST)
    await asyncio.gather(*posts)
    assert (refused.status_code, refused.json()["reason"]) == (429, "TOO_MANY_LARGE_INPUTS")
    assert refused.headers["Retry-After"] == "1"


async def test_clients_without_a_token_wait_in_the_line_of_their_address(
    app: Gateway, gateway: httpx.AsyncClient
) -> None:
    body = b'{"username":"' + b"x" * LARGE_BYTES + b'"}'
    headers = {"Content-Type": "application/json"}
    async with busy(app) as inputs:
        post = asyncio.create_task(gateway.post("/v1/auth/login", content=body, headers=headers))
        await until_waiting(inputs, 1)
        assert list(inputs._lines) == ["127.0.0.1"]
    assert (await post).status_code == 422


async def test_message_of_a_socket_that_has_ended_is_dropped(app: Gateway, socket: Socket) -> None:
    async with busy(app) as inputs:
        await socket.send(unsubscribe("1", unknown="x" * LARGE_BYTES))
        await until_waiting(inputs, 1)
        socket.connection.transport.abort()
        await until_waiting(inputs, 0)


async def test_time_that_a_message_waits_counts_for_the_timeout_of_its_call(
    app: Gateway, socket: Socket, worker: Worker
) -> None:
    call = {
        "id": "1",
        "call": {
            "method": "postbus.posts.v1.PostsService.CreatePost",
            "timeoutMs": 9000,
            "request": {"title": "x", "body": "x" * LARGE_BYTES},
        },
    }
    async with busy(app) as inputs:
        began = time.monotonic()
        await socket.send(call)
        await until_waiting(inputs, 1)
        await asyncio.sleep(WAITING)
    await socket.frame()
    [(_, request)] = worker.requests
    assert 8.999 - (time.monotonic() - began) < request.budget_ms / 1000 <= 9 - WAITING


async def test_user_with_8_waiting_inputs_gets_an_error_frame_for_a_large_message(
    app: Gateway, socket: Socket
) -> None:
    async with busy(app) as inputs:
        waiting = [asyncio.create_task(inputs.read("alice", 10, bool)) for _ in range(8)]
        await asyncio.sleep(0)
        await socket.send(unsubscribe("1", unknown="x" * LARGE_BYTES))
        refused = await socket.frame()
    await asyncio.gather(*waiting)

    assert (refused["id"], refused["error"]["reason"]) == ("1", "TOO_MANY_LARGE_INPUTS")
    assert refused["error"]["retryAfter"] == "1s"


async def test_large_message_counts_for_the_rate_of_its_user_before_it_is_read(
    bus: MemoryBus, verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    rates = RateLimits(RateLimitSettings(user="2/day"), BoundedStorage())
    app = build_app(bus, verifier, max_body_bytes=2**20, rates=rates)
    async with app.running(), open_socket(app) as socket:
        await socket.request({"id": "a", "authenticate": {"accessToken": tokens.token("alice")}})
        message = unsubscribe("1", unknown="x" * LARGE_BYTES)
        reasons = [(await socket.request(message))["error"]["reason"] for _ in range(3)]

    assert reasons == ["INVALID_FIELDS", "INVALID_FIELDS", "RATE_LIMITED"]


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        (b'{"id":"1","x":2}', "1"),
        (b' {\n"id" : "a b" }', "a b"),
        (b'{"id":"a\\u0020b"}', ""),
        (b'{"id":"\xc3\xa9"}', ""),
        (b'{"x":1,"id":"1"}', ""),
        (b'{"id":"' + b"x" * 65 + b'"}', ""),
        (b"[]", ""),
    ],
)
def test_id_of_a_frame_that_is_not_parsed_is_its_first_member(text: bytes, id_: str) -> None:
    assert first_member_id(text) == id_
