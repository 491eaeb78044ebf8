"""Up to a megabyte of anything, to every method over every transport, has bounded work and output.

The gateway and the worker `posts` run under tests/probe.py, which measures the longest step of
their event loops in processor time. The bounds are about three times the most that was measured.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import cache
from typing import Any, Final

import aio_pika
import httpx
import pytest
import websockets
from google.protobuf.descriptor import FieldDescriptor

from postbus.bus.v1 import Request
from postbus.registry import METHODS, Access, HttpRule, Method
from shared.wire import encode, message_class
from tests.conftest import Place
from tests.messages import message as message_of_test
from tests.messages import reply_queue
from tests.system import Cost, System, run_system
from tests.tokens import TokenMaker
from tools.accounts.rights import OPERATOR

pytestmark = pytest.mark.timeout(300)

MEGABYTE: Final = 1_000_000
SIZE: Final = MEGABYTE - 1000
"""Bytes of a document: a frame with it has a megabyte at most."""
MAX_ANSWER_BYTES: Final = 64 * 1024
MAX_GROWTH_MIB: Final = 32
MAX_STEP_SECONDS: Final = 0.06
MAX_READING_STEP_SECONDS: Final = 0.005
MAX_CPU_SECONDS: Final = 0.075

USER: Final = "018f3b6e-7b1a-7c44-9d0e-5f2a1b3c4d5e"
CALLABLE: Final = {
    name: method for name, method in METHODS.items() if method.access is not Access.INTERNAL
}
ROUTES: Final = [(method, rule) for method in CALLABLE.values() for rule in method.http]


@pytest.fixture(scope="module")
async def probed(
    place: Place, tokens: TokenMaker, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    """Return the system with gateway and worker `posts` under the probe, warmed up."""
    logs = tmp_path_factory.mktemp("probed")
    environment = place.as_environment()
    async with run_system(environment, tokens, logs, probed=("gateway", "posts")) as system:
        async with httpx.AsyncClient(base_url=system.url) as client:
            for _ in range(3):
                for body in bombs("postbus.posts.v1.CreatePostRequest"):
                    headers = {"Content-Type": "application/json", **bearer(tokens)}
                    await client.post("/v1/posts", content=body, headers=headers)
        system.cost("gateway"), system.cost("posts")
        yield system


def bearer(tokens: TokenMaker) -> dict[str, str]:
    """Return the header of a user."""
    return {"Authorization": f"Bearer {tokens.token(USER)}"}


@cache
def bombs(request_name: str) -> list[bytes]:
    """Return JSON documents of about a megabyte, each invalid or large in one way."""
    large = [_json_of(field.json_name, _kind(field)) for field in _fields(request_name)]
    return [_many_unknown(), _json_of("u" * SIZE, "zero"), _json_of("nested", "nested"), *large]


def _fields(request_name: str) -> Sequence[Any]:
    return message_class(request_name).DESCRIPTOR.fields


def _kind(field: FieldDescriptor) -> str:
    """Return the kind of the large value for a field."""
    if field.is_repeated:
        return "list"
    if field.message_type is not None:
        is_mask = field.message_type.full_name == "google.protobuf.FieldMask"
        return "mask" if is_mask else "message"
    return "text" if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else "number"


@cache
def _many_unknown() -> bytes:
    return json.dumps({f"unknown{number}": 0 for number in range(SIZE // 16)}).encode()


@cache
def _large(kind: str) -> bytes:
    """Return the JSON of a value of about a megabyte."""
    match kind:
        case "zero":
            return b"0"
        case "nested":  # as deep as an encoder of JSON in Python writes
            return b"[" * 901 + b"]" * 901
        case "list":
            return json.dumps([""] * (SIZE // 3)).encode()
        case "mask":
            return b'"' + b"bio," * (SIZE // 4) + b'"'
        case "message":
            return _many_unknown()
        case "text":
            return b'"' + b"x" * SIZE + b'"'
    return b'"' + b"1" * SIZE + b'"'


def _json_of(name: str, kind: str) -> bytes:
    return b'{"%s":%s}' % (name.encode(), _large(kind))


def path_of(rule: HttpRule) -> str:
    """Return a path of the rule, with a valid id for each variable."""
    return "".join(
        USER if part.startswith("{") else part
        for part in rule.path.replace("{", "\0{").replace("}", "}\0").split("\0")
    )


def require_bounded(before: Cost, after: Cost, answer_bytes: int) -> None:
    """Fail unless response, processor time and the longest step are within the bounds."""
    assert answer_bytes <= MAX_ANSWER_BYTES
    assert after.cpu - before.cpu <= MAX_CPU_SECONDS
    assert after.longest_step <= MAX_STEP_SECONDS


async def test_megabyte_to_any_route_costs_little(probed: System, tokens: TokenMaker) -> None:
    start = probed.cost("gateway")
    async with httpx.AsyncClient(base_url=probed.url, timeout=30) as client:
        for method, rule in ROUTES:
            for headers in ({}, bearer(tokens)):
                for body in bombs(method.request_name):
                    before = probed.cost("gateway")
                    response = await client.request(
                        rule.verb,
                        path_of(rule),
                        content=body,
                        headers={"Content-Type": "application/json", **headers},
                    )
                    assert response.status_code < 500 or response.status_code == 503, response.text[
                        :300
                    ]
                    require_bounded(before, probed.cost("gateway"), len(response.content))
    assert probed.cost("gateway").resident - start.resident <= MAX_GROWTH_MIB


async def test_binary_megabyte_to_any_route_costs_little(
    probed: System, tokens: TokenMaker
) -> None:
    start = probed.cost("gateway")
    kinds = ("application/protobuf", "application/proto")
    async with httpx.AsyncClient(base_url=probed.url, timeout=30) as client:
        for method, rule in ROUTES:
            for body in _binary_bombs(method) if rule.body else ():
                for kind, verb, path in (
                    (kinds[0], rule.verb, path_of(rule)),
                    (kinds[1], "POST", method.route),
                ):
                    before = probed.cost("gateway")
                    headers = {"Content-Type": kind, **bearer(tokens)}
                    response = await client.request(verb, path, content=body, headers=headers)
                    assert response.status_code < 500 or response.status_code == 503
                    require_bounded(before, probed.cost("gateway"), len(response.content))
    assert probed.cost("gateway").resident - start.resident <= MAX_GROWTH_MIB


def costly_bodies() -> Iterator[bytes]:
    """Yield bodies of up to a megabyte that take the gateway 10 to 20 ms to read."""
    objects = b",".join([b'{"b":{"c":1}}'] * 6_600)
    yield b'{"title":"x","title":"x","unknown":[' + objects + b"]}"
    name = b'"' + b"b" * 90 + b':"'
    repeating = b",".join([b"{%b:{},%b:{}}" % (name, name)] * 4_800)
    yield b'{"unknown":[' + repeating + b"]}"


async def least_of_the_longest_steps(probed: System, ask: Callable[[], Awaitable[None]]) -> float:
    """Return the longest step of the gateway's loop in the best of five tries.

    The best, because a garbage collection may take as long as the work under test.
    """
    steps = []
    for _ in range(5):
        probed.cost("gateway")
        await ask()
        async with httpx.AsyncClient() as client:
            await client.get(f"{probed.url}/healthz")  # the loop serves it in a later step
        steps.append(probed.cost("gateway").longest_step)
    return min(steps)


async def test_event_loop_is_not_blocked_while_a_large_body_is_read(
    probed: System, tokens: TokenMaker
) -> None:
    async with httpx.AsyncClient(base_url=probed.url, headers=bearer(tokens)) as client:
        for body in costly_bodies():

            async def post(body: bytes = body) -> None:
                fields = {"Content-Type": "application/json"}
                response = await client.post("/v1/posts", content=body, headers=fields)
                assert response.status_code == 422
                assert response.json()["violations"][0]["rule"] == "duplicate"

            assert await least_of_the_longest_steps(probed, post) <= MAX_READING_STEP_SECONDS


async def test_event_loop_is_not_blocked_while_a_large_message_is_read(
    probed: System, tokens: TokenMaker
) -> None:
    authenticate = {"id": "a", "authenticate": {"accessToken": tokens.token(USER)}}
    for body in costly_bodies():
        frame = b'{"id":"1","call":{"method":"postbus.posts.v1.PostsService.CreatePost",'
        frame += b'"request":' + body + b"}}"

        async def send(frame: bytes = frame) -> None:
            async with websockets.connect(probed.websocket_url) as socket:
                await socket.send(json.dumps(authenticate))
                await socket.recv()
                await socket.send(frame, text=True)
                received = json.loads(await socket.recv())
            assert received["error"]["violations"][0]["rule"] == "duplicate"

        assert await least_of_the_longest_steps(probed, send) <= MAX_READING_STEP_SECONDS


def anything(method: Method, dice: random.Random, size: int) -> Any:
    """Return JSON of about `size` bytes with names of the method's fields and random values."""
    names = [field.json_name for field in message_class(method.request_name).DESCRIPTOR.fields]

    def value(depth: int) -> Any:
        kind = dice.randrange(9 if depth < 6 else 6)
        if kind == 6:
            return [value(depth + 1) for _ in range(dice.randrange(8))]
        if kind > 6:
            count = dice.randrange(6)
            return {dice.choice([*names, "@type", "x", ""]): value(depth + 1) for _ in range(count)}
        text = "".join(dice.choices('aé\u202e\0😀\ud800:"', k=dice.randrange(40)))
        return [None, dice.random() < 0.5, dice.randint(-(2**70), 2**70), 1e300, text, "1"][kind]

    piece = value(0)
    many = max(1, size // max(1, len(json.dumps(piece))))
    shape = dice.randrange(3)
    if shape == 0:
        return {dice.choice([*names, "x"]): [piece] * many}
    if shape == 1:
        return {f"{dice.choice([*names, 'x'])}{number}": piece for number in range(many)}
    return [piece] * many


async def test_anything_over_any_transport_costs_little(probed: System, tokens: TokenMaker) -> None:
    dice = random.Random(20261125)  # noqa: S311  # the same values in every run
    start = probed.cost("gateway")
    async with httpx.AsyncClient(base_url=probed.url, timeout=30) as client:
        for _ in range(150):
            method, rule = dice.choice(ROUTES)
            document = anything(method, dice, int(MEGABYTE ** dice.random()))
            before = probed.cost("gateway")
            headers = {"Content-Type": "application/json", **dice.choice([{}, bearer(tokens)])}
            response = await client.request(
                rule.verb, path_of(rule), content=json.dumps(document), headers=headers
            )
            assert response.status_code < 500, response.text[:300]
            require_bounded(before, probed.cost("gateway"), len(response.content))
            before = probed.cost("gateway")
            frame = _call(method, json.dumps(document).encode())
            size = await _response_size(probed, tokens, frame, dice.random() < 0.5)
            require_bounded(before, probed.cost("gateway"), size)
    assert probed.cost("gateway").resident - start.resident <= MAX_GROWTH_MIB


async def test_long_query_to_any_route_costs_little(probed: System, tokens: TokenMaker) -> None:
    queries = (
        "&".join(f"a{number}=b" for number in range(6000)),
        f"q={'x' * 60_000}",
        "%" * 60_000,
    )
    async with httpx.AsyncClient(base_url=probed.url, timeout=30) as client:
        for _, rule in ROUTES:
            for query in queries:
                before = probed.cost("gateway")
                url = f"{path_of(rule)}?{query}"
                response = await client.request(rule.verb, url, headers=bearer(tokens))
                assert response.status_code < 500, response.text[:300]
                require_bounded(before, probed.cost("gateway"), len(response.content))


@pytest.mark.parametrize("authenticated", [False, True])
async def test_megabyte_in_a_frame_costs_little(
    probed: System, tokens: TokenMaker, authenticated: bool
) -> None:
    start = probed.cost("gateway")
    for method in CALLABLE.values():
        for request in bombs(method.request_name):
            before = probed.cost("gateway")
            size = await _response_size(probed, tokens, _call(method, request), authenticated)
            require_bounded(before, probed.cost("gateway"), size)
    assert probed.cost("gateway").resident - start.resident <= MAX_GROWTH_MIB


def _call(method: Method, request: bytes) -> bytes:
    """Return the frame of a call."""
    return b'{"id":"1","call":{"method":"%s","request":%s}}' % (method.name.encode(), request)


async def _response_size(
    probed: System, tokens: TokenMaker, frame: bytes, authenticated: bool
) -> int:
    """Send a frame on a new socket; return the bytes of its response, 0 if the socket is closed."""
    async with websockets.connect(probed.websocket_url, max_size=None) as socket:
        if authenticated:
            token = tokens.token(USER)
            await socket.send(json.dumps({"id": "a", "authenticate": {"accessToken": token}}))
            await socket.recv()
        try:
            await socket.send(frame, text=True)
            async with asyncio.timeout(20):
                return len(await socket.recv())
        except websockets.ConnectionClosed:
            return 0


async def test_megabyte_on_the_bus_costs_a_worker_little(
    probed: System, place: Place, tokens: TokenMaker
) -> None:
    start = probed.cost("posts")
    connection = await aio_pika.connect(place.amqp_url)
    async with connection:
        channel = await connection.channel()
        calls = await channel.get_exchange("postbus.calls.posts")
        await channel.declare_exchange(f"postbus.replies.{OPERATOR}", "direct", durable=True)
        replies = await reply_queue(channel, OPERATOR)
        for method in METHODS.values():
            if method.worker != "posts":
                continue
            for payload in _binary_bombs(method):
                before = probed.cost("posts")
                request = Request(payload=payload, access_token=tokens.token(USER))
                reply = await _reply(calls, replies, method.name, request)
                require_bounded(before, probed.cost("posts"), len(reply))
    assert probed.cost("posts").resident - start.resident <= MAX_GROWTH_MIB


def _binary_bombs(method: Method) -> Iterator[bytes]:
    """Yield messages of a megabyte: unknown fields, no message, long lists, long strings."""
    yield b"\xfa\x07\x00" * (MEGABYTE // 3)
    yield b"\xff" * MEGABYTE
    for field in message_class(method.request_name).DESCRIPTOR.fields:
        if field.cpp_type in (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_MESSAGE):
            key = bytes([field.number << 3 | 2]) if field.number < 16 else None
            if key and field.is_repeated:
                yield (key + b"\x00") * (MEGABYTE // 2)
            elif key and field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
                yield key + b"\x80\x80\x3d" + b"x" * 999_424


async def _reply(
    calls: aio_pika.abc.AbstractExchange,
    replies: aio_pika.abc.AbstractQueue,
    route: str,
    request: Request,
) -> bytes:
    request.deadline_unix_ms = 2**53
    message = message_of_test(encode(request), OPERATOR, reply_to=replies.name, correlation_id="1")
    await calls.publish(message, route)
    async with asyncio.timeout(20), replies.iterator() as incoming:
        async for reply in incoming:
            await reply.ack()
            return reply.body
    raise AssertionError("no reply")
