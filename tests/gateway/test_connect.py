"""Unary calls over the Connect protocol (connectrpc.com/docs/protocol)."""

import asyncio
import json
import re
import tracemalloc
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from structlog.testing import capture_logs

from gateway.app import build_app
from gateway.connect_codecs import TooLargeError, decompressed
from gateway.connect_errors import error_document, error_response
from gateway.gateway import Gateway
from gateway.large_inputs import LARGE_BYTES
from gateway.problems import problem
from gateway.rate_limits import RateLimits, RateLimitSettings
from gateway.rate_storage import BoundedStorage
from postbus.bus.v1 import Code, Error, FieldViolation, Outcome, Reply
from postbus.posts.v1 import (
    CreatePostRequest,
    CreatePostResponse,
    GetPostRequest,
    GetPostResponse,
    Post,
)
from postbus.registry import METHODS, Access
from postbus_runtime.reasons import Reason
from shared.access_tokens import TokenVerifier
from shared.bus.memory import MemoryBus
from shared.errors import ServiceError
from shared.wire import decode, encode
from tests.gateway.conftest import Worker
from tests.gateway.connect_client import JSON, POSTS, PROTO, details_of, error_of, gzipped
from tests.gateway.listening import listening
from tests.tokens import TokenMaker
from tools.paths import ROOT

TABLE = ROOT / "docs/connect.md"
GET, CREATE = f"{POSTS}/GetPost", f"{POSTS}/CreatePost"
ID = "018f3f6e-0000-7000-8000-000000000001"
FOUND = GetPostResponse(post=Post(id=ID, title="Hé", version=3))


@pytest.fixture
def headers(tokens: TokenMaker) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens.token('alice')}"}


@pytest.fixture
async def large(
    bus: MemoryBus, verifier: TokenVerifier
) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    """A gateway that accepts messages of 256 KiB, and its client."""
    app = build_app(bus, verifier, max_body_bytes=2**18)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield app, client


def query(content: bytes, **parameters: str) -> dict[str, str]:
    encoded = urlsafe_b64encode(content).rstrip(b"=").decode()
    return {"connect": "v1", "encoding": "proto", "base64": "1", "message": encoded} | parameters


async def test_json_message_becomes_the_request_and_the_reply_becomes_json(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    worker.reply = Reply(payload=encode(FOUND))

    response = await gateway.post(GET, json={"id": ID}, headers={"Connect-Protocol-Version": "1"})

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json()["post"]["title"] == "Hé"
    assert response.json()["post"]["version"] == "3"
    [(route, request)] = worker.requests
    assert route == "postbus.posts.v1.PostsService.GetPost"
    assert decode(GetPostRequest, request.payload) == GetPostRequest(id=ID)


async def test_binary_message_becomes_the_request_and_the_reply_is_binary(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    reply = CreatePostResponse(post=Post(id=ID, title="Hi", version=1))
    worker.reply = Reply(payload=encode(reply), replayed=True)
    sent = CreatePostRequest(title="Hi", body="é")

    response = await gateway.post(CREATE, content=encode(sent), headers=headers | PROTO)

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/proto"
    assert response.headers["idempotency-replayed"] == "true"
    assert decode(CreatePostResponse, response.content) == reply
    assert decode(CreatePostRequest, worker.requests[0][1].payload) == sent


async def test_call_carries_token_operation_id_trace_and_timeout(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    sent = headers | {
        "Idempotency-Key": "key-1",
        "traceparent": f"00-{trace}-b7ad6b7169203331-01",
        "Connect-Timeout-Ms": "2500",
    }

    response = await gateway.post(CREATE, json={"title": "Hi"}, headers=sent)

    [(_, request)] = worker.requests
    assert 1500 < request.budget_ms <= 2500  # without the wait on a busy machine
    assert f"Bearer {request.access_token}" == headers["Authorization"]
    assert request.operation_id == "key-1"
    assert request.client_address == "127.0.0.1"
    assert request.traceparent.split("-")[1] == trace == response.headers["trace-id"]


async def test_call_without_a_timeout_has_that_of_its_method_and_a_long_one_is_30_seconds(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    await gateway.post(GET, json={"id": ID})
    await gateway.post(GET, json={"id": ID}, headers={"Connect-Timeout-Ms": "9999999999"})

    budgets = [request.budget_ms / 1000 for _, request in worker.requests]
    assert 4.5 < budgets[0] <= METHODS["postbus.posts.v1.PostsService.GetPost"].timeout
    assert 29 < budgets[1] <= 30


async def test_call_ends_at_its_timeout_and_so_does_its_handler(verifier: TokenVerifier) -> None:
    cancelled = asyncio.Event()

    async def handler(_route: str, _body: bytes, _service: str) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b""

    bus = MemoryBus()
    await bus.serve("posts", ["postbus.posts.v1.PostsService.GetPost"], handler)
    transport = httpx.ASGITransport(build_app(bus, verifier, max_body_bytes=10_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        response = await client.post(GET, json={"id": ID}, headers={"Connect-Timeout-Ms": "50"})
        late = await client.post(GET, json={"id": ID}, headers={"Connect-Timeout-Ms": "0"})

    assert error_of(response) == (504, "deadline_exceeded", "")
    assert error_of(late) == (504, "deadline_exceeded", "")
    async with asyncio.timeout(2):
        await cancelled.wait()


async def test_disconnect_cancels_the_call(verifier: TokenVerifier) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(_route: str, _body: bytes, _service: str) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b""

    bus = MemoryBus()
    await bus.serve("posts", ["postbus.posts.v1.PostsService.GetPost"], handler)
    app = build_app(bus, verifier, max_body_bytes=10_000)
    async with listening(app) as port, asyncio.timeout(4):  # less than the timeout of the call
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"POST {GET} HTTP/1.1\r\nHost: a\r\nContent-Type: application/proto\r\n"
            "Connect-Timeout-Ms: 20000\r\nContent-Length: 3\r\n\r\n".encode()
            + b"\x0a\x01a"
        )
        await begun.wait()
        writer.close()
        await cancelled.wait()


@pytest.mark.parametrize(
    ("code", "status", "name"),
    [
        (Code.CANCELLED, 499, "canceled"),
        (Code.UNKNOWN, 500, "unknown"),
        (Code.INVALID_ARGUMENT, 400, "invalid_argument"),
        (Code.DEADLINE_EXCEEDED, 504, "deadline_exceeded"),
        (Code.NOT_FOUND, 404, "not_found"),
        (Code.ALREADY_EXISTS, 409, "already_exists"),
        (Code.PERMISSION_DENIED, 403, "permission_denied"),
        (Code.RESOURCE_EXHAUSTED, 429, "resource_exhausted"),
        (Code.FAILED_PRECONDITION, 400, "failed_precondition"),
        (Code.ABORTED, 409, "aborted"),
        (Code.OUT_OF_RANGE, 400, "out_of_range"),
        (Code.UNIMPLEMENTED, 501, "unimplemented"),
        (Code.INTERNAL, 500, "internal"),
        (Code.UNAVAILABLE, 503, "unavailable"),
        (Code.DATA_LOSS, 500, "data_loss"),
        (Code.UNAUTHENTICATED, 401, "unauthenticated"),
    ],
)
async def test_error_has_the_name_and_status_of_its_code(
    gateway: httpx.AsyncClient, worker: Worker, code: int, status: int, name: str
) -> None:
    worker.reply = Reply(
        error=Error(code=Code.try_value(code), reason="OUT_OF_TEA", message="No tea\r\n☕")
    )

    response = await gateway.post(GET, json={"id": ID})

    assert error_of(response) == (status, name, "OUT_OF_TEA")
    assert response.json()["message"] == "No tea\r\n☕"


def test_table_of_statuses_is_documented() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+).* \| (\d+) \| `(\w+)` \|$", TABLE.read_text(), re.M)
    names = [code for code, *_ in rows]

    for code, rest, status, name in rows:
        error = ServiceError(Reason("", Code.from_string(code)), "")
        assert problem(error, "").status == int(rest)
        assert error_response(error, "", []).status == int(status)
        assert error_document(error, "") == {"code": name}
    assert names == [code.name for code in Code if code]


async def test_error_has_reason_violations_and_delay_as_details(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    worker.reply = Reply(
        error=Error(
            code=Code.try_value(Code.INVALID_ARGUMENT),
            reason="OUT_OF_TEA",
            message="No tea",
            violations=[FieldViolation(field="a.b", rule="string.min_len", message="too short")],
            more_violations=True,
            retry_after=timedelta(seconds=1.5),
            outcome=Outcome.try_value(Outcome.UNKNOWN),
            trace_id="1" * 32,
        )
    )

    response = await gateway.post(GET, json={"id": ID})

    info, request, retry = details_of(response.json())
    assert isinstance(info, ErrorInfo)
    assert (info.reason, info.domain) == ("OUT_OF_TEA", "postbus")
    assert info.metadata == {"outcome": "UNKNOWN", "traceId": "1" * 32, "moreViolations": "true"}
    assert isinstance(request, BadRequest)
    [violation] = request.field_violations
    assert (violation.field, violation.reason) == ("a.b", "STRING_MIN_LEN")
    assert violation.description == "too short"
    assert isinstance(retry, RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 1500
    assert response.headers["retry-after"] == "2"


async def test_error_without_reason_has_no_details(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    worker.reply = Reply(error=Error(code=Code.try_value(Code.ABORTED)))

    response = await gateway.post(GET, json={"id": ID})

    assert response.json() == {"code": "aborted"}


@pytest.mark.parametrize(
    ("content", "field", "reason"),
    [
        (b'{"title": ""}', "title", "STRING_MIN_LEN"),
        (b'{"title": "x", "colour": "red"}', "colour", "UNKNOWN_FIELD"),
        (b'{"title": 1}', "title", "TYPE"),
        (b"[]", "", "TYPE"),
    ],
)
async def test_violations_are_those_of_rest(
    gateway: httpx.AsyncClient,
    worker: Worker,
    headers: dict[str, str],
    content: bytes,
    field: str,
    reason: str,
) -> None:
    response = await gateway.post(CREATE, content=content, headers=headers | JSON)

    assert error_of(response) == (400, "invalid_argument", "INVALID_FIELDS")
    request = details_of(response.json())[1]
    assert isinstance(request, BadRequest)
    assert [(each.field, each.reason) for each in request.field_violations] == [(field, reason)]
    assert worker.requests == []


@pytest.mark.parametrize(
    ("kind", "content", "reason"),
    [
        (JSON, b"{", "MALFORMED_JSON"),
        (JSON, b"", "MALFORMED_JSON"),
        (PROTO, b"\x0a\x05a", "MALFORMED_MESSAGE"),
        (PROTO | {"content-encoding": "gzip"}, b"no gzip", ""),
        (PROTO | {"content-encoding": "gzip"}, gzipped(b"")[:-1], ""),
        (PROTO | {"content-encoding": "gzip"}, gzipped(b"") * 2, ""),
        (PROTO | {"connect-protocol-version": "2"}, b"", ""),
        (PROTO | {"connect-timeout-ms": "1.5"}, b"", ""),
        (PROTO | {"connect-timeout-ms": "12345678901"}, b"", ""),
        (PROTO | {"idempotency-key": "x y"}, b"", "IDEMPOTENCY_KEY_INVALID"),
    ],
)
async def test_malformed_request_is_invalid(
    gateway: httpx.AsyncClient, worker: Worker, kind: dict[str, str], content: bytes, reason: str
) -> None:
    response = await gateway.post(GET, content=content, headers=kind)

    assert error_of(response) == (400, "invalid_argument", reason)
    assert worker.requests == []


async def test_unknown_fields_of_a_binary_message_reach_no_worker(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    """Readers of protobuf ignore them; a worker with a later contract would not."""
    sent = encode(GetPostRequest(id=ID))

    await gateway.post(GET, content=sent + b"\xfa\x7f\x01x", headers=PROTO)

    assert worker.requests[0][1].payload == sent


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/connect+json", "application/grpc", "application/xml", None]
)
async def test_other_content_type_is_415(gateway: httpx.AsyncClient, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    response = await gateway.post(GET, content=b"{}", headers=headers)

    assert response.status_code == 415
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["reason"] == "CODEC_UNSUPPORTED"
    assert response.headers["accept-post"] == "application/json, application/proto"
    assert response.headers["vary"] == "Authorization"


async def test_content_type_has_parameters_and_any_case(gateway: httpx.AsyncClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}

    response = await gateway.post(GET, content=b'{"id": "a"}', headers=headers)

    assert response.status_code == 200


async def test_unknown_method_is_404_and_an_internal_one_too(gateway: httpx.AsyncClient) -> None:
    internal = next(each for each in METHODS.values() if each.access is Access.INTERNAL)
    for path in (f"{POSTS}/Nothing", "/postbus.nothing.v1.Service/Get", internal.route):
        response = await gateway.post(path, json={})

        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"


async def test_every_method_of_clients_has_a_route(gateway: httpx.AsyncClient) -> None:
    for method in METHODS.values():
        served = method.access is not Access.INTERNAL
        response = await gateway.options(method.route)

        assert (response.status_code == 204) is served
        if served:
            read = not method.has_side_effects and not method.streams
            allowed = "GET, HEAD, OPTIONS, POST" if read else "OPTIONS, POST"
            assert response.headers["allow"] == allowed


@pytest.mark.parametrize(("verb", "path"), [("PUT", GET), ("GET", CREATE), ("DELETE", CREATE)])
async def test_other_verb_is_405(gateway: httpx.AsyncClient, verb: str, path: str) -> None:
    response = await gateway.request(verb, path)

    assert response.status_code == 405
    assert "POST" in response.headers["allow"]


async def test_method_of_users_needs_a_valid_token(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    missing = await gateway.post(CREATE, content=b"not json", headers=JSON)
    invalid = await gateway.post(GET, json={"id": ID}, headers={"Authorization": "Bearer nonsense"})

    assert error_of(missing) == (401, "unauthenticated", "TOKEN_MISSING")
    assert error_of(invalid) == (401, "unauthenticated", "TOKEN_INVALID")
    assert 'error="invalid_token"' in invalid.headers["www-authenticate"]
    assert worker.requests == []


async def test_calls_count_for_the_rates_of_rest(bus: MemoryBus, verifier: TokenVerifier) -> None:
    rates = RateLimits(RateLimitSettings(address="2/hour"), BoundedStorage())
    app = build_app(bus, verifier, max_body_bytes=10_000, rates=rates)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        assert "ratelimit" in (await client.post(GET, json={"id": ID})).headers
        await client.post(GET, content=b"", headers={"content-type": "text/plain"})
        response = await client.post(GET, json={"id": ID})

    assert error_of(response) == (429, "resource_exhausted", "RATE_LIMITED")
    assert response.headers["retry-after"]
    assert any(isinstance(each, RetryInfo) for each in details_of(response.json()))


async def test_get_calls_a_method_without_side_effects(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    worker.reply = Reply(payload=encode(FOUND))
    message = encode(GetPostRequest(id=ID))
    plain: dict[str, str] = {"encoding": "json", "message": json.dumps({"id": ID})}
    packed = query(gzipped(message), compression="gzip")

    for parameters in (query(message), plain, packed):
        response = await gateway.get(GET, params=parameters, headers=headers)

        assert response.status_code == 200
        assert response.headers["content-type"] == f"application/{parameters['encoding']}"
        assert response.headers["cache-control"] == "private, no-cache"
        assert decode(GetPostRequest, worker.requests[-1][1].payload).id == ID


@pytest.mark.parametrize(
    ("parameters", "status", "reason"),
    [
        (query(b"", message="%"), 400, ""),
        (query(b"", message="a"), 400, ""),
        (query(b"", compression="br"), 501, ""),
        (query(b"", connect="v2"), 400, ""),
        ({"encoding": "proto"}, 400, ""),
        ([("encoding", "proto"), ("message", ""), ("message", "")], 400, ""),
    ],
)
async def test_malformed_query_is_refused(
    gateway: httpx.AsyncClient, parameters: Any, status: int, reason: str
) -> None:
    response = await gateway.get(GET, params=parameters)

    assert error_of(response)[0::2] == (status, reason)


@pytest.mark.parametrize("padding", ["", "="])
async def test_base64_of_a_message_may_be_padded(
    gateway: httpx.AsyncClient, worker: Worker, padding: str
) -> None:
    response = await gateway.get(GET, params=query(b"", message=f"CgNhYmI{padding}"))

    assert response.status_code == 200
    assert decode(GetPostRequest, worker.requests[0][1].payload).id == "abb"


async def test_empty_message_is_not_compressed(gateway: httpx.AsyncClient, worker: Worker) -> None:
    """As clients send it, see the protocol's Unary-Request."""
    headers = PROTO | {"content-encoding": "gzip"}
    response = await gateway.post(f"{POSTS}/ListPosts", content=b"", headers=headers)

    assert response.status_code == 200
    assert worker.requests[0][1].payload == b""


async def test_get_with_another_encoding_is_415(gateway: httpx.AsyncClient) -> None:
    response = await gateway.get(GET, params={"encoding": "xml", "message": ""})

    assert response.status_code == 415


async def test_head_has_no_body(gateway: httpx.AsyncClient, worker: Worker) -> None:
    worker.reply = Reply(payload=encode(FOUND))

    response = await gateway.head(GET, params=query(encode(GetPostRequest(id=ID))))

    assert response.status_code == 200


async def test_messages_are_compressed_both_ways_if_both_sides_can(
    large: tuple[Gateway, httpx.AsyncClient], worker: Worker
) -> None:
    for size in (2_000, 200_000):
        post = Post(id=ID, body="x" * size)
        worker.reply = Reply(payload=encode(GetPostResponse(post=post)))
        sent = PROTO | {"content-encoding": "gzip", "accept-encoding": "gzip"}
        content = gzipped(encode(GetPostRequest(id=ID)))

        response = await large[1].post(GET, content=content, headers=sent)

        assert response.headers["content-encoding"] == "gzip"
        assert int(response.headers["content-length"]) < size / 10
        assert decode(GetPostResponse, response.content).post == post
        assert decode(GetPostRequest, worker.requests[-1][1].payload).id == ID
        plain = sent | {"accept-encoding": "identity"}
        response = await large[1].post(GET, content=content, headers=plain)
        assert "content-encoding" not in response.headers


async def test_small_response_is_not_compressed(gateway: httpx.AsyncClient, worker: Worker) -> None:
    worker.reply = Reply(payload=encode(FOUND))

    response = await gateway.post(GET, json={"id": ID}, headers={"accept-encoding": "gzip"})

    assert "content-encoding" not in response.headers


async def test_unknown_compression_is_unimplemented(gateway: httpx.AsyncClient) -> None:
    response = await gateway.post(GET, content=b"", headers=PROTO | {"content-encoding": "br"})

    assert error_of(response) == (501, "unimplemented", "")


def padded(size: int) -> bytes:
    """Return a message of exactly `size` bytes, by a field that the contract does not have."""
    head = b"\x0a\x01a\xa2\x06"
    for length in range(size, 0, -1):
        value = _varint(length) + b"x" * length
        if len(head) + len(value) == size:
            return head + value
    raise ValueError(size)


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_limit_of_a_message_is_that_after_decompression(
    gateway: httpx.AsyncClient, worker: Worker, coding: str
) -> None:
    for size, status in ((10_000, 200), (10_001, 429)):
        content = gzipped(padded(size)) if coding == "gzip" else padded(size)
        response = await gateway.post(
            GET, content=content, headers=PROTO | {"content-encoding": coding}
        )

        assert response.status_code == status
    assert error_of(response) == (429, "resource_exhausted", "")
    assert len(worker.requests) == 1


async def test_decompression_stops_at_the_limit_and_does_not_block_the_loop(
    large: tuple[Gateway, httpx.AsyncClient], worker: Worker
) -> None:
    bomb = gzipped(b"\x00" * 2**26)
    assert len(bomb) < 2**18

    response = await large[1].post(GET, content=bomb, headers=PROTO | {"content-encoding": "gzip"})

    assert error_of(response) == (429, "resource_exhausted", "")
    assert worker.requests == []


async def test_message_that_is_large_after_decompression_is_read_in_the_thread(
    large: tuple[Gateway, httpx.AsyncClient], worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, client = large
    clients: list[str] = []
    read = app.large_inputs.read

    async def recorded(client: str, *rest: Any) -> Any:
        clients.append(client)
        return await read(client, *rest)

    monkeypatch.setattr(app.large_inputs, "read", recorded)
    for size in (LARGE_BYTES, LARGE_BYTES + 1):
        for coding in ("identity", "gzip"):
            content = gzipped(padded(size)) if coding == "gzip" else padded(size)
            response = await client.post(
                GET, content=content, headers=PROTO | {"content-encoding": coding}
            )
            assert response.status_code == 200

    assert clients == ["127.0.0.1"] * 2
    assert len(worker.requests) == 4


async def test_malformed_reply_is_internal_and_logged_once(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    worker.reply = Reply(payload=b"\x0a\x05a")

    with capture_logs() as lines:
        for kind in (JSON, PROTO):
            content = b"\x0a\x01a" if kind is PROTO else b'{"id": "a"}'
            response = await gateway.post(GET, content=content, headers=kind)

            assert error_of(response) == (500, "internal", "")
            assert response.headers["cache-control"] == "no-store"
            assert response.headers["x-content-type-options"] == "nosniff"

    assert [line["event"] for line in lines] == ["reply.malformed"]


async def test_empty_response_is_a_message(
    gateway: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    delete = f"{POSTS}/DeletePost"
    response = await gateway.post(delete, json={"id": ID}, headers=headers)
    binary = await gateway.post(
        delete, content=encode(GetPostRequest(id=ID)), headers=headers | PROTO
    )

    assert (response.status_code, response.content) == (200, b"{}")
    assert (binary.status_code, binary.content) == (200, b"")


async def test_page_of_an_allowed_origin_may_call(bus: MemoryBus, verifier: TokenVerifier) -> None:
    page = "https://app.example.com"
    app = build_app(bus, verifier, max_body_bytes=10_000, allowed_origins=(page,))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        headers = {"origin": page, "access-control-request-method": "POST"}
        preflight = await client.options(GET, headers=headers)
        response = await client.post(GET, json={"id": ID}, headers={"origin": page})
        failed = await client.post(CREATE, json={}, headers={"origin": page})

    allowed = preflight.headers["access-control-allow-headers"]
    assert {"Connect-Protocol-Version", "Connect-Timeout-Ms"} <= set(allowed.split(", "))
    assert response.headers["access-control-allow-origin"] == page
    assert failed.headers["access-control-allow-origin"] == page


async def test_revisions_are_those_of_rest(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    worker.reply = Reply(payload=b"", caller_revision=7)
    await gateway.post(CREATE, json={"title": "Hi"}, headers=headers)
    await gateway.post(CREATE, json={"title": "Hi"}, headers=headers)

    assert [request.caller_revision for _, request in worker.requests] == [0, 7]


async def test_calls_with_invalid_tokens_count_for_the_address(
    bus: MemoryBus, verifier: TokenVerifier
) -> None:
    rates = RateLimits(RateLimitSettings(address="1/hour"), BoundedStorage())
    app = build_app(bus, verifier, max_body_bytes=10_000, rates=rates)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        await client.post(CREATE, json={})
        response = await client.post(CREATE, json={})

    assert error_of(response) == (429, "resource_exhausted", "RATE_LIMITED")


async def test_limit_of_a_whole_body_is_that_of_a_part(bus: MemoryBus, app: Gateway) -> None:
    async with listening(app) as port, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}{GET}"
        response = await client.post(url, content=padded(10_001), headers=PROTO)

    assert error_of(response) == (429, "resource_exhausted", "")


async def test_responses_to_posts_are_not_stored(gateway: httpx.AsyncClient) -> None:
    response = await gateway.post(GET, json={"id": ID})

    assert response.headers["cache-control"] == "no-store"


def test_decompression_allocates_no_more_than_the_limit() -> None:
    bomb = gzipped(bytes(2**26))
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError):
            decompressed(bomb, 10_000)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < 2**20
