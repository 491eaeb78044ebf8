"""Streams over the Connect protocol."""

import asyncio
from collections.abc import AsyncGenerator, Callable

import httpx
import pytest
from starlette.types import Message
from structlog.testing import capture_logs

from gateway.connect_codecs import TooLargeError
from gateway.connect_envelopes import only_message
from gateway.gateway import Gateway
from postbus.posts.v1 import ExportMeResponse
from postbus.registry import METHODS
from postbus_runtime.reasons import Reason
from shared.bus.memory import MemoryBus
from shared.bus.reply import completed_reply, error_reply, payload_reply, with_metadata
from shared.errors import Code, ServiceError
from shared.metadata import OutgoingMetadata
from shared.wire import encode
from tests.gateway.connect_client import STREAM, end_of, enveloped, envelopes, gzipped, reason_of
from tests.gateway.listening import listening
from tests.tokens import TokenMaker

[METHOD] = [each for each in METHODS.values() if each.streams and each.access == "USER"]
Serve = Callable[..., AsyncGenerator[bytes, None]]
REQUEST = enveloped(b"{}")


@pytest.fixture
def headers(tokens: TokenMaker) -> dict[str, str]:
    return STREAM | {"Authorization": f"Bearer {tokens.token('alice')}"}


class StreamingWorker:
    """Serves the streaming method by a generator that the test chooses."""

    def __init__(self) -> None:
        self.serve: Serve = three

    def handle(self, route: str, body: bytes, service: str) -> AsyncGenerator[bytes, None]:
        return self.serve(route, body, service)


@pytest.fixture
def streaming() -> StreamingWorker:
    return StreamingWorker()


@pytest.fixture
async def bus(streaming: StreamingWorker) -> MemoryBus:
    bus = MemoryBus()
    await bus.serve("streams", [METHOD.name], streaming.handle)
    return bus


def item(cursor: str) -> bytes:
    return encode(ExportMeResponse(cursor=cursor))


async def three(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
    for sequence, size in enumerate((1, 2_000, 3), 1):
        yield payload_reply(item("c" * size), sequence)
    yield completed_reply(4)


async def test_stream_is_messages_and_an_end(
    gateway: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    response = await gateway.post(METHOD.route, content=REQUEST, headers=headers)

    assert response.headers["content-type"] == "application/connect+json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["trace-id"]
    frames = envelopes(response.content)
    assert [flags for flags, _ in frames] == [0, 0, 0, 2]
    assert [len(data) for _, data in frames] == [14, 2_013, 16, 2]
    assert frames[0][1] == b'{"cursor":"c"}'
    assert end_of(response) == {}


async def test_binary_stream_is_compressed_if_the_client_can(
    gateway: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    sent = headers | {
        "content-type": "application/connect+proto",
        "connect-content-encoding": "gzip",
        "connect-accept-encoding": "gzip",
    }
    content = enveloped(gzipped(b""), 1)
    response = await gateway.post(METHOD.route, content=content, headers=sent)

    assert response.headers["connect-content-encoding"] == "gzip"
    assert "content-encoding" not in response.headers
    frames = envelopes(response.content)
    assert [flags for flags, _ in frames] == [0, 1, 0, 2]
    assert frames[0][1] == item("c")
    assert len(frames[1][1]) < 100


@pytest.mark.parametrize("after", [0, 1])
async def test_error_is_in_the_end_of_the_stream(
    gateway: httpx.AsyncClient, streaming: StreamingWorker, headers: dict[str, str], after: int
) -> None:
    async def serve(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        for sequence in range(after):
            yield payload_reply(item("c"), sequence + 1)
        yield error_reply(ServiceError(Reason("OUT_OF_TEA", Code.ABORTED), "No tea", retry_after=1))

    streaming.serve = serve
    response = await gateway.post(METHOD.route, content=REQUEST, headers=headers)

    assert response.headers["content-type"] == "application/connect+json"
    error = end_of(response)["error"]
    # a lost reply is STREAM_BROKEN: the number of this error is not its position
    assert reason_of(error) == "OUT_OF_TEA"
    assert len(envelopes(response.content)) == after + 1


async def test_malformed_message_of_a_worker_ends_the_stream(
    gateway: httpx.AsyncClient, streaming: StreamingWorker, headers: dict[str, str]
) -> None:
    async def serve(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        yield payload_reply(b"\x0a\x05a", 1)

    streaming.serve = serve
    with capture_logs() as logs:
        response = await gateway.post(METHOD.route, content=REQUEST, headers=headers)
        over_rest = await gateway.get(METHOD.http[0].path, headers=headers)

    assert end_of(response)["error"]["code"] == "internal"
    error = over_rest.json()["error"]
    assert (error["reason"], error["outcome"]) == ("INTERNAL", "UNKNOWN")
    assert [each["event"] for each in logs] == ["reply.malformed"]  # one line in ten seconds


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [
        (b"", "unimplemented", ""),
        (REQUEST * 2, "unimplemented", ""),
        (REQUEST[:4], "invalid_argument", ""),
        (REQUEST[:-1], "invalid_argument", ""),
        (enveloped(b"{}", 2), "invalid_argument", ""),
        (enveloped(b"{}", 4), "invalid_argument", ""),
        (enveloped(gzipped(b"{}"), 1), "internal", ""),
        (enveloped(b" " * 9_998 + b"{}"), "", ""),
        (enveloped(b" " * 9_999 + b"{}"), "resource_exhausted", ""),
        (enveloped(b" " * 20_000 + b"{}"), "resource_exhausted", ""),
        (enveloped(b"["), "invalid_argument", "MALFORMED_JSON"),
        (enveloped(b'{"colour": 1}'), "invalid_argument", "INVALID_FIELDS"),
    ],
)
async def test_request_is_one_valid_message(
    gateway: httpx.AsyncClient, headers: dict[str, str], content: bytes, code: str, reason: str
) -> None:
    response = await gateway.post(METHOD.route, content=content, headers=headers)

    error = end_of(response).get("error")
    assert (error["code"], reason_of(error)) == (code, reason) if error else not code


async def test_compression_is_unknown_or_of_unary_calls_only(
    gateway: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    unknown = headers | {"connect-content-encoding": "br"}
    refused = await gateway.post(METHOD.route, content=REQUEST, headers=unknown)
    unary = headers | {"content-encoding": "br", "accept-encoding": "gzip"}
    ignored = await gateway.post(METHOD.route, content=REQUEST, headers=unary)

    assert end_of(refused)["error"]["code"] == "unimplemented"
    assert end_of(ignored) == {}
    assert "connect-content-encoding" not in ignored.headers


async def test_refusals_before_the_call_are_ends_of_streams(gateway: httpx.AsyncClient) -> None:
    response = await gateway.post(METHOD.route, content=REQUEST, headers=STREAM)
    unary = await gateway.post(METHOD.route, json={})
    verb = await gateway.get(METHOD.route)

    assert reason_of(end_of(response)["error"]) == "TOKEN_MISSING"
    assert (unary.status_code, verb.status_code) == (401, 405)


async def test_unary_content_type_of_a_streaming_method_is_415(
    gateway: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    sent = headers | {"content-type": "application/json"}
    response = await gateway.post(METHOD.route, content=b"{}", headers=sent)

    assert response.status_code == 415
    assert response.headers["accept-post"] == "application/connect+json, application/connect+proto"


async def test_head_waits_for_the_first_reply_and_timeout_ends_the_stream(
    gateway: httpx.AsyncClient, streaming: StreamingWorker, headers: dict[str, str]
) -> None:
    ended = asyncio.Event()

    async def serve(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        try:
            yield payload_reply(item("c"), 1)
            await asyncio.Event().wait()
        finally:
            ended.set()

    streaming.serve = serve
    async with asyncio.timeout(5):
        sent = headers | {"connect-timeout-ms": "100"}
        response = await gateway.post(METHOD.route, content=REQUEST, headers=sent)
        await ended.wait()

    assert [flags for flags, _ in envelopes(response.content)] == [0, 2]
    assert end_of(response)["error"]["code"] == "deadline_exceeded"


async def test_disconnect_in_the_middle_cancels_the_call(
    app: Gateway, streaming: StreamingWorker, headers: dict[str, str]
) -> None:
    cancelled = asyncio.Event()

    async def serve(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        try:
            yield payload_reply(item("c"), 1)
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    streaming.serve = serve
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    async with listening(app) as port, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {METHOD.route} HTTP/1.1\r\nHost: a\r\n{lines}Content-Length: 7\r\n\r\n"
        writer.write(head.encode() + REQUEST)
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b'{"cursor":"c"}')
        writer.close()
        await cancelled.wait()


def test_limit_of_a_message_in_a_stream_is_without_its_envelope() -> None:
    assert only_message(enveloped(b"x" * 10), gzip=False, max_bytes=10) == (b"x" * 10, False)
    with pytest.raises(TooLargeError):
        only_message(enveloped(b"x" * 11), gzip=False, max_bytes=10)


async def test_body_is_not_read_beyond_the_limit(app: Gateway, headers: dict[str, str]) -> None:
    parts = 0

    async def receive() -> Message:
        nonlocal parts
        parts += 1
        return {"type": "http.request", "body": REQUEST * 1000, "more_body": parts < 100}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": METHOD.route,
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)

    assert parts == 2
    assert b"resource_exhausted" in sent[-1]["body"]


@pytest.mark.parametrize("fails", [False, True])
async def test_metadata_is_in_the_head_and_in_the_end(
    gateway: httpx.AsyncClient, streaming: StreamingWorker, headers: dict[str, str], fails: bool
) -> None:
    head, tail = OutgoingMetadata(), OutgoingMetadata()
    head.add("x-head", "a", "b")
    tail.add("x-tail", "z")

    async def serve(_route: str, _body: bytes, _service: str) -> AsyncGenerator[bytes, None]:
        yield with_metadata(payload_reply(item("c"), 1), head, None)
        error = ServiceError(Reason("OUT_OF_TEA", Code.ABORTED), "No tea")
        yield with_metadata(error_reply(error) if fails else completed_reply(2), None, tail)

    streaming.serve = serve
    response = await gateway.post(METHOD.route, content=REQUEST, headers=headers)

    assert response.headers.get_list("x-head") == ["a", "b"]
    assert end_of(response)["metadata"] == {"x-tail": ["z"]}
    assert ("error" in end_of(response)) is fails
