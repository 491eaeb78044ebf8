"""The HTTP/1.1 protocol of the gateway, over raw sockets, with uvicorn and a small application."""

import asyncio
import gc
import json
import resource
import shutil
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import h11
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from gateway.cors import Cors
from gateway.http1 import ConnectionCounts, HttpLimits, http1
from gateway.http1.body_framing import (
    EXTENSION_BYTES,
    STEP_CHUNKS,
    TRAILER_BYTES,
    ChunkedBody,
    SizedBody,
)
from gateway.http1.exchange import EXCHANGE, Exchange
from gateway.http1.head import parse_head
from gateway.http1.head_fields import CHUNKED, HEAD_BYTES, MAX_FIELDS
from gateway.problems import HttpError
from gateway.response_headers import transport_security
from tests.system import free_port

BODY_BYTES = 100_000
SHORT = 0.2
"""Seconds of a deadline under test."""


class Echo:
    """Responds with a description of the request; the path selects other behaviour."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.disconnected = asyncio.Event()
        self.proceed = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            message = await receive()
            await send({"type": "websocket.send", "text": message.get("text", "closed")})
            return
        self.requests.append(f"{scope['method']} {scope['path']}")
        await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, body, parts = scope["path"], b"", [b""]
        if path == "/large":
            parts = [b"x" * 5_000_000] * 4
        elif path == "/whole":
            fields = [(b"content-length", b"90000")]
            assert scope["extensions"][EXCHANGE].respond(200, fields, b"x" * 90_000)
            return
        elif path == "/none":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})
            return
        elif path == "/last":
            fields = [(b"content-length", b"0"), (b"connection", b"close")]
            scope["extensions"][EXCHANGE].respond(200, fields, b"")
            return
        elif path == "/called-back":
            scope["extensions"][EXCHANGE].on_disconnect(self.disconnected.set)
            await self.disconnected.wait()
            return
        elif path == "/leave":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.disconnected.set()
            return
        elif path.startswith("/wrong/"):
            await _wrong(path, send)
            return
        elif path == "/fail":
            raise RuntimeError("a fault of the application")
        elif path == "/wait":
            await self.proceed.wait()
        elif not path.startswith("/ignore"):
            more = True
            while more:
                event = await receive()
                if event["type"] == "http.disconnect":
                    return
                body += event["body"]
                more = event["more_body"]
        if path != "/large":
            parts = [_described(scope, body)]
        length = str(sum(map(len, parts))).encode()
        fields = [(b"content-type", b"application/json")]
        if path != "/chunked":
            fields.append((b"content-length", length))
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})


async def _wrong(path: str, send: Send) -> None:
    fields = [(b"content-length", b"10")]
    if path == "/wrong/nothing":
        return
    if path == "/wrong/break":
        fields.append((b"a", b"b\r\ninjected: c"))
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    if path == "/wrong/end":
        return
    bodies = {"/wrong/longer": b"injected injected", "/wrong/break": b"0123456789"}
    body = bodies.get(path, b"short")
    await send({"type": "http.response.body", "body": body, "more_body": path == "/wrong/shorter"})
    if path == "/wrong/shorter":
        await send({"type": "http.response.body"})


def _described(scope: Scope, body: bytes) -> bytes:
    values = {name: scope[name] for name in ("method", "path", "http_version", "client", "scheme")}
    fields = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
    raw = {"raw_path": scope["raw_path"].decode(), "query": scope["query_string"].decode()}
    return json.dumps({**values, **raw, "headers": fields, "body": body.decode("latin-1")}).encode()


@dataclass
class Server:
    """A running server, its application, and the number of its connections."""

    port: int
    echo: Echo
    clients: ConnectionCounts
    uvicorn: uvicorn.Server


@dataclass(frozen=True)
class Response:
    """One response."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def outline(self) -> tuple[int, str]:
        """Return the status, and the reason of a problem or the body that was received."""
        document = self.document
        return self.status, document["body"] if self.status == 200 else document["reason"]


async def until(condition: Callable[[], bool]) -> None:
    """Return once a condition of the server is true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the server has no event for it
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serve(
    limits: HttpLimits | None = None,
    clients: ConnectionCounts | None = None,
    origins: Sequence[str] = (),
    **options: Any,
) -> AsyncIterator[Server]:
    """Run a server until the end of the block."""
    echo, clients = Echo(), clients or ConnectionCounts(total=1000, per_address=1000)
    config = uvicorn.Config(
        echo,
        http=http1(limits or HttpLimits(max_body_bytes=BODY_BYTES), clients, Cors(origins)),
        port=free_port(),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        **{"proxy_headers": False, **options},
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server._serve())
    await until(lambda: server.started)
    try:
        yield Server(config.port, echo, clients, server)
    finally:
        server.should_exit = True
        await running


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


class Client:
    """A connection that sends raw bytes and reads responses."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *writes: bytes) -> None:
        """Send bytes so that the server reads each write separately."""
        for each in writes:
            self.writer.write(each)
            for _ in range(4):  # lets the server, which runs in this loop, read
                await asyncio.sleep(0)

    async def response(self, method: str = "GET") -> Response:
        """Read one response."""
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status, fields = parse(head)
            body = b""
            if method == "HEAD" or status in (100, 204, 304):
                pass
            elif "content-length" in fields:
                body = await self.reader.readexactly(int(fields["content-length"]))
            elif fields.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                assert await self.reader.readexactly(2) == b"\r\n"
            else:
                body = await self.reader.read()
        return Response(status, fields, body)

    async def responses(self) -> list[Response]:
        """Read responses until the server closes."""
        found = []
        with suppress(asyncio.IncompleteReadError):
            while True:
                found.append(await self.response())
        return found

    async def is_closed(self) -> bool:
        """Return whether the server closes the connection without sending another byte."""
        async with asyncio.timeout(10):
            with suppress(ConnectionResetError):
                return await self.reader.read(1) == b""
        return True


def parse(head: bytes) -> tuple[int, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")[:-2]
    fields = dict(line.split(": ", 1) for line in lines[1:])
    assert len(fields) == len(lines) - 1, f"a field occurs twice: {lines}"
    return int(lines[0].split(" ")[1]), {name.lower(): value for name, value in fields.items()}


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def exchange(server: Server, *writes: bytes) -> list[Response]:
    """Send bytes; return all responses until the server closes."""
    async with connect(server) as client:
        await client.send(*writes)
        return await client.responses()


def request(
    line: str = "GET /echo HTTP/1.1", *fields: str, body: bytes = b"", host: str = "Host: a"
) -> bytes:
    return "\r\n".join((line, *([host] if host else []), *fields, "", "")).encode("latin-1") + body


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in chunks) + (
        b"0\r\n" + trailers + b"\r\n"
    )


LAST = request("GET /echo HTTP/1.1", "Connection: close")
POST = request("POST /echo HTTP/1.1", "Content-Length: 5", body=b"hello")
CHUNKED_POST = request("POST /echo HTTP/1.1", "Transfer-Encoding: chunked", body=chunked(b"hello"))


# Heads (RFC 9112, sections 2 to 5)


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        # request lines
        (b"nonsense\r\n\r\n", 400, "MALFORMED_HTTP"),
        (request("GET /echo"), 400, "MALFORMED_HTTP"),  # HTTP/0.9
        (request("GET  /echo HTTP/1.1"), 400, "MALFORMED_HTTP"),
        (request("GET /echo  HTTP/1.1"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1 "), 400, "MALFORMED_HTTP"),
        (request("GET /a b HTTP/1.1"), 400, "MALFORMED_HTTP"),
        (request("GET\t/echo HTTP/1.1"), 400, "MALFORMED_HTTP"),
        (request(" GET /echo HTTP/1.1"), 400, "MALFORMED_HTTP"),
        (request("GET /echo http/1.1"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.10"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTP/1.1"), 400, "MALFORMED_HTTP"),
        (request("G@T /echo HTTP/1.1"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/2.0"), 505, "VERSION_NOT_SUPPORTED"),
        (request("GET /echo HTTP/0.9"), 505, "VERSION_NOT_SUPPORTED"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "VERSION_NOT_SUPPORTED"),
        (request("BREW /echo HTTP/1.1"), 501, "METHOD_UNKNOWN"),
        (request("get /echo HTTP/1.1"), 501, "METHOD_UNKNOWN"),
        (request("CONNECT a:443 HTTP/1.1"), 501, "METHOD_UNKNOWN"),
        # targets
        (request("GET echo HTTP/1.1"), 400, "TARGET_INVALID"),
        (request("GET * HTTP/1.1"), 400, "TARGET_INVALID"),
        (request("GET /echo#part HTTP/1.1"), 400, "TARGET_INVALID"),
        (request("GET /\xe9 HTTP/1.1"), 400, "TARGET_INVALID"),
        (request("GET /a\tb HTTP/1.1"), 400, "TARGET_INVALID"),
        (request("GET /%zz HTTP/1.1"), 400, "TARGET_INVALID"),
        (request("GET /%4 HTTP/1.1"), 400, "TARGET_INVALID"),
        (request("GET /?q=%zz HTTP/1.1"), 400, "TARGET_INVALID"),
        (request("GET /%FF HTTP/1.1"), 400, "TARGET_INVALID"),
        (request("GET /%C3 HTTP/1.1"), 400, "TARGET_INVALID"),
        (request("GET ftp://a/echo HTTP/1.1"), 400, "TARGET_INVALID"),
        (request("GET http:///echo HTTP/1.1"), 400, "HOST_INVALID"),
        (request("GET http://user@a/echo HTTP/1.1"), 400, "HOST_INVALID"),
        # hosts
        (request(host=""), 400, "HOST_INVALID"),
        (request(host="Host:"), 400, "HOST_INVALID"),
        (request(host="Host: a b"), 400, "HOST_INVALID"),
        (request(host="Host: a/b"), 400, "HOST_INVALID"),
        (request(host="Host: a@b"), 400, "HOST_INVALID"),
        (request(host="Host: a, b"), 400, "HOST_INVALID"),
        (request(host="Host: a:b"), 400, "HOST_INVALID"),
        (request(host="Host: a:1:2"), 400, "HOST_INVALID"),
        (request(host="Host: [::1"), 400, "HOST_INVALID"),
        (request(host="Host: \xe9"), 400, "HOST_INVALID"),
        (request("GET http://b/ HTTP/1.1", host="Host: a b"), 400, "HOST_INVALID"),
        (request("GET /echo HTTP/1.0", host="Host: a b"), 400, "HOST_INVALID"),
        # fields
        (request("GET /echo HTTP/1.1", "a"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1", "host"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1", "a : b"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1", "a\t: b"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1", ": b"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1", "a: b", " c: d"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1", "a: b", "\tc"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1", " a: b"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1", "a(: b"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1", "\xe9: b"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1", "a: b\0c"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1", "a: b\x7f"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1", "a: b\x0bc"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1", "a: b\nc: d"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1", "a: b\rc: d"), 400, "MALFORMED_HTTP"),
        (request("GET /echo HTTP/1.1", "a: b\r\r\n"), 400, "MALFORMED_HTTP"),
        (request().replace(b"\r\n", b"\n"), 400, "MALFORMED_HTTP"),
        (b"\n" + request(), 400, "MALFORMED_HTTP"),
        # framing
        (request("POST /echo HTTP/1.1", "Content-Length: -1"), 400, "LENGTH_INVALID"),
        (request("POST /echo HTTP/1.1", "Content-Length: +5"), 400, "LENGTH_INVALID"),
        (request("POST /echo HTTP/1.1", "Content-Length: 0x5"), 400, "LENGTH_INVALID"),
        (request("POST /echo HTTP/1.1", "Content-Length: 5, 5"), 400, "LENGTH_INVALID"),
        (request("POST /echo HTTP/1.1", "Content-Length: 5 5"), 400, "LENGTH_INVALID"),
        (request("POST /echo HTTP/1.1", "Content-Length:"), 400, "LENGTH_INVALID"),
        (request("POST /echo HTTP/1.1", "Content-Length: 1_0"), 400, "LENGTH_INVALID"),
        (request("POST /echo HTTP/1.1", "Content-Length: " + "9" * 40), 400, "LENGTH_INVALID"),
        (request("POST /echo HTTP/1.1", "Content-Length: \xb2"), 400, "LENGTH_INVALID"),
        (
            request("POST /echo HTTP/1.1", "Content-Length: 5", "Transfer-Encoding: chunked"),
            400,
            "FRAMING_INVALID",
        ),
        (request("POST /echo HTTP/1.0", "Transfer-Encoding: chunked"), 400, "FRAMING_INVALID"),
        (request("POST /echo HTTP/1.1", "Transfer-Encoding: identity"), 400, "FRAMING_INVALID"),
        (request("POST /echo HTTP/1.1", "Transfer-Encoding:"), 400, "FRAMING_INVALID"),
        (request("POST /echo HTTP/1.1", "Transfer-Encoding: chunked,"), 400, "FRAMING_INVALID"),
        (request("POST /echo HTTP/1.1", "Transfer-Encoding: xchunked"), 400, "FRAMING_INVALID"),
        (request("POST /echo HTTP/1.1", "Transfer-Encoding: chunked;a"), 400, "FRAMING_INVALID"),
        (
            request("POST /echo HTTP/1.1", "Transfer-Encoding: chunked, gzip"),
            400,
            "FRAMING_INVALID",
        ),
        (
            request(
                "POST /echo HTTP/1.1", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"
            ),
            400,
            "FRAMING_INVALID",
        ),
        (
            request("POST /echo HTTP/1.1", "Transfer-Encoding: gzip, chunked"),
            501,
            "CODING_UNKNOWN",
        ),
        (request("POST /echo HTTP/1.1", "Expect: tea"), 417, "EXPECTATION_UNKNOWN"),
    ],
)
async def test_invalid_head_is_refused_and_the_connection_closed(
    server: Server, sent: bytes, status: int, reason: str
) -> None:
    before = len(server.echo.requests)

    response, *more = await exchange(server, sent + LAST)

    assert response.outline == (status, reason)
    assert response.document["outcome"] == "NO_EFFECT"
    assert response.fields["content-type"] == "application/problem+json"
    assert response.fields["connection"] == "close"
    assert "date" in response.fields
    assert not more
    assert len(server.echo.requests) == before


SINGLETONS = """
    Access-Control-Request-Method Authorization Content-Length Content-Location Content-Range
    Content-Type Date From Host Idempotency-Key If-Modified-Since If-Range If-Unmodified-Since
    Max-Forwards Origin Proxy-Authorization Range Referer Request-Timeout Sec-WebSocket-Key
    Sec-WebSocket-Version User-Agent
"""


@pytest.mark.parametrize("name", SINGLETONS.split())
@pytest.mark.parametrize("values", [("1", "1"), ("1", "2")])
async def test_repeated_singleton_field_is_refused(
    server: Server, name: str, values: tuple[str, str]
) -> None:
    fields = [f"{name}: {values[0]}", "Accept: */*", f"{name.lower()}: {values[1]}"]
    host = "" if name == "Host" else "Host: a"

    (response,) = await exchange(server, request("GET /echo HTTP/1.1", *fields, host=host))

    assert response.outline == (400, "FIELD_REPEATED")


async def test_field_that_is_a_list_may_repeat(server: Server) -> None:
    fields = ['If-None-Match: "a"', 'If-None-Match: "b"', "Accept: a/a", "Accept: b/b", "Cookie: a"]

    (response,) = await exchange(
        server, request("GET /echo HTTP/1.1", *fields, "Connection: x", "Connection: close")
    )

    assert [name for name, _ in response.document["headers"]] == [
        "host", "if-none-match", "if-none-match", "accept", "accept", "cookie", "connection",
        "connection",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("GET /a/b?c=d&e HTTP/1.1", {"path": "/a/b", "raw_path": "/a/b", "query": "c=d&e"}),
        ("GET / HTTP/1.1", {"path": "/", "query": ""}),
        ("GET /? HTTP/1.1", {"path": "/", "query": ""}),
        ("GET //a HTTP/1.1", {"path": "//a", "raw_path": "//a"}),
        ("GET /a%2Fb%C3%A9 HTTP/1.1", {"path": "/a/b\xe9", "raw_path": "/a%2Fb%C3%A9"}),
        ("GET /v1/%70osts%7E HTTP/1.1", {"path": "/v1/posts~", "raw_path": "/v1/posts~"}),
        ("GET /a%2570 HTTP/1.1", {"path": "/a%70", "raw_path": "/a%2570"}),
        ("GET /|{}?a=[]|^ HTTP/1.1", {"path": "/|{}", "query": "a=[]|^"}),
        ("GET http://b:81/c?d HTTP/1.1", {"path": "/c", "query": "d", "host": "b:81"}),
        ("GET HTTPS://b HTTP/1.1", {"path": "/", "query": "", "host": "b"}),
        ("GET http://b?d HTTP/1.1", {"path": "/", "query": "d", "host": "b"}),
        ("OPTIONS * HTTP/1.1", {"method": "OPTIONS", "path": "*"}),
        ("QUERY / HTTP/1.1", {"method": "QUERY"}),
        ("GET / HTTP/1.1", {"http_version": "1.1"}),
        ("GET / HTTP/1.7", {"http_version": "1.1"}),
        ("GET / HTTP/1.0", {"http_version": "1.0"}),
    ],
)
async def test_request_line_becomes_the_scope(
    server: Server, line: str, expected: dict[str, str]
) -> None:
    (response,) = await exchange(server, request(line, "Connection: close"))

    scope = response.document
    scope["host"] = dict(scope["headers"])["host"]
    assert {name: scope[name] for name in expected} == expected


@pytest.mark.parametrize("host", ["a", "a.b:80", "a:", "127.0.0.1", "[::1]", "[::1]:80", "a_b~"])
async def test_host_may_be_a_name_or_an_address_with_a_port(server: Server, host: str) -> None:
    (response,) = await exchange(
        server, request("GET /echo HTTP/1.1", "Connection: close", host=f"Host: {host}")
    )

    assert response.document["headers"][0] == ["host", host]


async def test_field_values_arrive_without_the_space_around_them(server: Server) -> None:
    (response,) = await exchange(
        server, request("GET /echo HTTP/1.1", "A:\t b\tc  ", "e:", "F: \xe9", "Connection: close")
    )

    assert response.document["headers"][1:4] == [["a", "b\tc"], ["e", ""], ["f", "\xe9"]]


async def test_empty_lines_before_a_request_are_ignored(server: Server) -> None:
    got = await exchange(server, b"\r\n" + POST + b"\r\n\r\n" + LAST)

    assert [each.status for each in got] == [200, 200]


async def test_http_1_0_needs_no_host_and_gets_no_chunks(server: Server) -> None:
    (response,) = await exchange(server, request("GET /chunked HTTP/1.0", host=""))

    assert response.document["http_version"] == "1.0"
    assert response.fields["connection"] == "close"
    assert "transfer-encoding" not in response.fields
    (response,) = await exchange(server, request("GET /chunked HTTP/1.1", "Connection: close"))
    assert response.fields["transfer-encoding"] == "chunked"


# Bounds of a head


def head_of(size: int) -> bytes:
    head = request("GET /echo HTTP/1.1", "Connection: close", "a: ")
    return head.replace(b"a: ", b"a: " + b"x" * (size - len(head)))


@pytest.mark.parametrize("writes", [1, 2, 3])
async def test_head_has_64_kib_at_most(server: Server, writes: int) -> None:
    async def status(size: int) -> int:
        head = head_of(size)
        assert len(head) == size
        parts = [head[at : at + -(-size // writes)] for at in range(0, size, -(-size // writes))]
        (response,) = await exchange(server, *parts)
        return response.status

    assert HEAD_BYTES == 65536
    assert await status(HEAD_BYTES) == 200
    assert await status(HEAD_BYTES + 1) == 431
    assert await status(HEAD_BYTES + 5000) == 431


@pytest.mark.parametrize("sent", [b"GET /" + b"a" * 70_000, b"a" * 70_000, b"\r\n" * 40_000 + b"a"])
async def test_head_without_end_is_refused(server: Server, sent: bytes) -> None:
    async with connect(server) as client:
        await client.send(sent + b"a" * 70_000)

        assert (await client.response()).outline == (431, "HEAD_TOO_LARGE")


@pytest.mark.parametrize(
    "sent", [b"GET /echo HTTP/1.1\n", b"GET /echo HTTP/1.1\r\nHost: a\n\n", b"GET /echo\rHost: a"]
)
async def test_line_end_that_is_invalid_is_refused_before_the_head_is_complete(
    server: Server, sent: bytes
) -> None:
    async with connect(server) as client:
        await client.send(sent)

        assert (await client.response()).outline == (400, "MALFORMED_HTTP")


async def test_bytes_of_a_body_do_not_count_as_head(server: Server) -> None:
    post = request("POST /echo HTTP/1.1", "Content-Length: 90000", body=b"x" * 90_000)
    half = len(LAST) // 2

    first, second = await exchange(server, post + LAST[:half], LAST[half:])

    assert first.document["body"] == "x" * 90_000
    assert second.status == 200


async def test_head_has_100_fields_at_most(server: Server) -> None:
    assert MAX_FIELDS == 100
    fields = [f"a{number}: b" for number in range(98)]
    (response,) = await exchange(
        server, request("GET /echo HTTP/1.1", *fields, "Connection: close")
    )
    assert response.status == 200

    (response,) = await exchange(
        server, request("GET /echo HTTP/1.1", *fields, "c: d", "Connection: close")
    )
    assert response.outline == (431, "TOO_MANY_FIELDS")


# Order


async def test_pipelined_requests_get_responses_in_order(server: Server) -> None:
    got = await exchange(
        server, b"".join(request(f"GET /{number} HTTP/1.1") for number in range(300)) + LAST
    )

    assert [each.document["path"] for each in got] == [f"/{n}" for n in range(300)] + ["/echo"]


async def test_requests_after_connection_close_get_no_response(server: Server) -> None:
    (response,) = await exchange(server, LAST + POST)

    assert response.fields["connection"] == "close"


@pytest.mark.parametrize(
    ("broken", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET /" + b"a" * 70_000, 431),
        (request("POST / HTTP/1.1", "Content-Length: 1000000000"), 413),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
async def test_invalid_request_is_refused_after_the_response_to_the_valid_one(
    server: Server, broken: bytes, status: int, apart: bool
) -> None:
    first, second = await exchange(server, *((POST, broken) if apart else (POST + broken,)))

    assert first.outline == (200, "hello")
    assert second.status == status
    assert second.document["outcome"] == "NO_EFFECT"


async def test_invalid_request_waits_for_the_previous_response() -> None:
    async with serve() as server, connect(server) as client:
        await client.send(request("GET /wait HTTP/1.1") + b"nonsense\r\n\r\n")
        server.echo.proceed.set()

        assert [each.status for each in await client.responses()] == [200, 400]


# Bodies


@pytest.mark.parametrize("fields", [[], ["Content-Length: 0"]])
async def test_request_without_a_body_has_an_empty_one(server: Server, fields: list[str]) -> None:
    (response,) = await exchange(
        server, request("POST /echo HTTP/1.1", *fields, "Connection: close")
    )

    assert response.outline == (200, "")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (chunked(b"a", b"bc", b"d" * 300), "abc" + "d" * 300),
        (chunked(), ""),
        (b"0005;name=value\r\nhello\r\n0;a\r\n\r\n", "hello"),
        (b'5 ; name="a b"\r\nhello\r\n0\r\n\r\n', "hello"),
        (b"A\r\n0123456789\r\na\r\n0123456789\r\n000\r\n\r\n", "0123456789" * 2),
    ],
)
async def test_chunks_become_the_body(server: Server, body: bytes, expected: str) -> None:
    head = request("POST /echo HTTP/1.1", "Transfer-Encoding: Chunked")

    first, second = await exchange(server, head + body + LAST)

    assert first.outline == (200, expected)
    assert second.outline == (200, "")


@pytest.mark.parametrize(
    "body",
    [
        b"x\r\n",
        b"\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5_0\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\rhello\r\n0\r\n\r\n",
        b"5\r\nhelloo\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhelloxx0\r\n\r\n",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        b"5;a\0b\r\nhello\r\n0\r\n\r\n",
        b"5 a\r\nhello\r\n0\r\n\r\n",
        b"fffffffff\r\n",
        b"0\r\na\r\n\r\n",
        b"0\r\na : b\r\n\r\n",
        b"0\r\n a: b\r\n\r\n",
        b"0\r\na: b\n\r\n\r\n",
        b"0\r\na: b\0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("path", ["/echo", "/leave", "/called-back"])
async def test_invalid_chunks_are_refused_and_the_connection_closed(
    server: Server, body: bytes, path: str
) -> None:
    head = request(f"POST {path} HTTP/1.1", "Transfer-Encoding: chunked")

    (response,) = await exchange(server, head + body + LAST)

    assert response.outline == (400, "MALFORMED_HTTP")
    assert response.document["outcome"] == "UNKNOWN"


@pytest.mark.parametrize(
    "trailers", [b"Authorization: Bearer a\r\n", b"Content-Length: 9\r\nHost: b\r\na:\r\n"]
)
@pytest.mark.parametrize("apart", [False, True])
async def test_trailers_are_dropped(server: Server, trailers: bytes, apart: bool) -> None:
    head = request("POST /echo HTTP/1.1", "Transfer-Encoding: chunked")
    body = chunked(b"hello", trailers=trailers)

    first, second = await exchange(server, *((head, body) if apart else (head + body,)), LAST)

    assert first.outline == (200, "hello")
    assert [name for name, _ in first.document["headers"]] == ["host", "transfer-encoding"]
    assert second.outline == (200, "")


@pytest.mark.parametrize(
    ("unit", "reason"),
    [(b"0\r\n" + b"a:\r\n" * 9000, "TRAILERS_TOO_LARGE"),
     (b"0\r\na: " + b"b" * 9000, "TRAILERS_TOO_LARGE"),
     (b"1;" + b"a" * 9000, "EXTENSIONS_TOO_LARGE"),
     (b"1;" + b"a" * 9000 + b"\r\nx\r\n", "EXTENSIONS_TOO_LARGE"),
     ((b"1;" + b"a" * 900 + b"\r\nx\r\n") * 10, "EXTENSIONS_TOO_LARGE")],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/echo", "/ignore"])
async def test_trailers_and_extensions_are_bounded(
    server: Server, unit: bytes, reason: str, path: str
) -> None:
    async with connect(server) as client:
        await client.send(request(f"POST {path} HTTP/1.1", "Transfer-Encoding: chunked"), unit)

        response = await client.response()

        if path == "/ignore":
            assert response.status == 200
        else:
            assert response.outline == (431, reason)
            assert response.document["outcome"] == "UNKNOWN"
        assert await client.is_closed()


async def test_trailers_and_extensions_within_their_bounds_are_accepted(server: Server) -> None:
    extension = b";" + b"a" * (EXTENSION_BYTES - 1)
    trailer = b"a:" + b"b" * (TRAILER_BYTES - 4) + b"\r\n"
    body = b"5" + extension + b"\r\nhello\r\n0\r\n" + trailer + b"\r\n"

    first, _ = await exchange(
        server, request("POST /echo HTTP/1.1", "Transfer-Encoding: chunked"), body + LAST
    )

    assert first.outline == (200, "hello")


async def test_other_tasks_run_during_many_small_chunks(server: Server) -> None:
    count = 20 * STEP_CHUNKS
    turns = 0
    async with connect(server) as client:
        client.writer.write(request("POST /echo HTTP/1.1", "Transfer-Encoding: chunked"))
        client.writer.write(chunked(*[b"x"] * count) + LAST)
        reading = asyncio.ensure_future(client.response())
        while not reading.done():
            turns += 1
            await asyncio.sleep(0)

        assert (await reading).outline == (200, "x" * count)
        assert turns > count / STEP_CHUNKS
        assert (await client.response()).status == 200


async def test_chunks_in_many_parts_are_read_once_per_loop_iteration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.http1.body_framing.STEP_CHUNKS", 1)
    pieces, count, turns = 20, 400, 0
    async with serve() as server, connect(server) as client:
        await client.send(request("POST /echo HTTP/1.1", "Transfer-Encoding: chunked"))
        await until(lambda: len(server.echo.requests) == 1)
        [connection] = server.uvicorn.server_state.connections
        for _ in range(pieces):
            connection.data_received(b"1\r\nx\r\n" * (count // pieces))
        connection.data_received(b"0\r\n\r\n")
        reading = asyncio.ensure_future(client.response())
        while not reading.done():
            turns += 1
            await asyncio.sleep(0)

        assert (await reading).outline == (200, "x" * count)
        assert turns > count / 2


@pytest.mark.parametrize("path", ["/echo", "/ignore", "/nowhere"])
@pytest.mark.parametrize("verb", ["GET", "POST", "PUT", "DELETE"])
async def test_announced_body_beyond_the_limit_is_refused_at_once(
    server: Server, path: str, verb: str
) -> None:
    head = request(f"{verb} {path} HTTP/1.1", "Content-Length: 100001", "Expect: 100-continue")
    async with connect(server) as client:
        await client.send(head)

        response = await client.response()  # and no 100 before it

        assert response.outline == (413, "BODY_TOO_LARGE")
        assert await client.is_closed()


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [("https://ours.example", "https://ours.example"), ("https://evil.example", None)],
)
async def test_page_of_an_allowed_origin_may_read_a_refusal(
    origin: str, allowed: str | None
) -> None:
    head = request("POST /echo HTTP/1.1", f"Origin: {origin}", "Content-Length: 100001")
    async with serve(origins=["https://ours.example"]) as server:
        (response,) = await exchange(server, head)

    assert response.outline == (413, "BODY_TOO_LARGE")
    assert response.fields.get("access-control-allow-origin") == allowed


async def test_body_up_to_the_limit_is_accepted(server: Server) -> None:
    body = b"x" * BODY_BYTES
    for sent in (
        request("POST /echo HTTP/1.1", f"Content-Length: {BODY_BYTES}", body=body),
        request("POST /echo HTTP/1.1", "Transfer-Encoding: chunked", body=chunked(body)),
    ):
        first, _ = await exchange(server, sent + LAST)
        assert first.outline == (200, "x" * BODY_BYTES)


async def test_chunked_body_beyond_the_limit_is_refused_before_its_end(server: Server) -> None:
    head = request("POST /echo HTTP/1.1", "Transfer-Encoding: chunked")
    async with connect(server) as client:
        await client.send(head, *[b"4000\r\n" + b"x" * 0x4000 + b"\r\n"] * 8)

        assert (await client.response()).outline == (413, "BODY_TOO_LARGE")
        assert await client.is_closed()


async def test_refusal_is_readable_after_64_megabytes_are_sent(server: Server) -> None:
    size = 64 << 20
    async with connect(server) as client:
        client.writer.write(request("POST /echo HTTP/1.1", f"Content-Length: {size}"))
        for _ in range(64):
            client.writer.write(b"x" * (1 << 20))
            await client.writer.drain()

        assert (await client.response()).status == 413


async def test_bytes_after_a_refusal_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.http1.protocol._DISCARDED_BYTES", 1_000_000)
    async with serve(HttpLimits(linger_seconds=60)) as server, connect(server) as client:
        await client.send(b"nonsense\r\n\r\n")
        assert (await client.response()).status == 400
        sent, most = 0, 100_000_000  # far more than the buffers of the kernel
        with suppress(ConnectionError):
            while not client.writer.transport.is_closing() and sent < most:
                client.writer.write(b"x" * 100_000)
                await client.writer.drain()
                sent += 100_000

        assert sent < most


@pytest.mark.parametrize("sent", [request() * 1000, b"x" * 27_000])
async def test_input_is_not_read_ahead_without_bound(sent: bytes) -> None:
    size = 64 << 20
    async with serve(HttpLimits(max_body_bytes=size)) as server, connect(server) as client:
        fields = [f"Content-Length: {size}"] if sent[:1] == b"x" else []
        await client.send(request("POST /wait HTTP/1.1", *fields))
        for _ in range(size // len(sent)):
            client.writer.write(sent)
        for _ in range(1000):
            await asyncio.sleep(0)

        # A part of it is in the buffers of the kernel.
        assert client.writer.transport.get_write_buffer_size() > size // 2
        client.writer.transport.abort()
        server.echo.proceed.set()
        await until(lambda: server.clients.open == 0)


@pytest.mark.parametrize("path", ["/ignore", "/echo"])
@pytest.mark.parametrize("at_once", [10, BODY_BYTES - 10, BODY_BYTES])
async def test_connection_is_reusable_after_an_unread_body(
    server: Server, path: str, at_once: int
) -> None:
    head = request(f"POST {path} HTTP/1.1", f"Content-Length: {BODY_BYTES}")
    async with connect(server) as client:
        await client.send(head + b"x" * at_once)
        if path == "/ignore":
            assert (await client.response()).status == 200
        await client.send(b"x" * (BODY_BYTES - at_once) + LAST)
        if path == "/echo":
            assert (await client.response()).status == 200

        assert (await client.response()).outline == (200, "")


async def test_unread_body_is_bounded(server: Server) -> None:
    async with connect(server) as client:
        await client.send(request("POST /ignore HTTP/1.1", "Transfer-Encoding: chunked"))
        assert (await client.response()).status == 200
        await client.send(*[b"4000\r\n" + b"x" * 0x4000 + b"\r\n"] * 8)

        assert await client.is_closed()


async def test_continue_is_sent_when_the_application_reads_the_body(server: Server) -> None:
    async with connect(server) as client:
        await client.send(
            request("POST /echo HTTP/1.1", "Content-Length: 5", "Expect: 100-Continue")
        )
        assert (await client.response()).status == 100
        await client.send(b"hello")
        assert (await client.response()).outline == (200, "hello")
        await client.send(LAST)
        assert (await client.response()).status == 200


async def test_connection_closes_after_a_response_instead_of_continue(server: Server) -> None:
    async with connect(server) as client:
        await client.send(
            request("POST /ignore HTTP/1.1", "Content-Length: 5", "Expect: 100-continue")
        )

        response = await client.response()

        assert (response.status, response.fields["connection"]) == (200, "close")
        assert await client.is_closed()


@pytest.mark.parametrize(
    "sent",
    [
        request("POST /echo HTTP/1.1", "Content-Length: 5", "Expect: 100-continue", body=b"hello"),
        request("GET /echo HTTP/1.1", "Expect: 100-continue"),
        request("POST /echo HTTP/1.0", "Expect: 100-continue"),
    ],
)
async def test_continue_is_not_sent_without_need(server: Server, sent: bytes) -> None:
    async with connect(server) as client:
        await client.send(sent)

        assert (await client.response()).status == 200


# Upgrades to other protocols (RFC 9110, section 7.8)


@pytest.mark.parametrize(
    "offer", ["h2c", "TLS/1.2", "HTTP/3", "h2c, websocket", "websocket/13", "foo", ""]
)
@pytest.mark.parametrize("sent", [POST, CHUNKED_POST, request()])
@pytest.mark.parametrize("apart", [False, True])
async def test_other_upgrade_is_declined_and_the_body_kept(
    server: Server, offer: str, sent: bytes, apart: bool
) -> None:
    fields = f"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {offer}\r\nHTTP2-Settings: A\r\n"
    offering = sent.replace(b"\r\n", fields.encode(), 1)
    at = offering.index(b"\r\n\r\n") + 4
    writes = (offering[:at], offering[at:], LAST) if apart else (offering + LAST,)

    first, second = await exchange(server, *writes)

    assert first.outline == (200, "" if sent == request() else "hello")
    assert second.outline == (200, "")


HANDSHAKE = (
    "Upgrade: WebSocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)
HELLO_FRAME = b"\x81\x85\0\0\0\0hello"


@pytest.mark.parametrize(
    "connection",
    [
        ["Connection: Upgrade"],
        ["Connection: keep-alive, upgrade"],
        ["Connection: Upgrade", "Connection: keep-alive"],
        ["Connection: keep-alive", "Connection: Upgrade"],
    ],
)
@pytest.mark.parametrize("before", [b"", POST])
async def test_websocket_gets_the_bytes_after_the_head(
    server: Server, connection: list[str], before: bytes
) -> None:
    async with connect(server) as client:
        await client.send(before + request("GET /ws HTTP/1.1", *connection, *HANDSHAKE))
        await client.send(HELLO_FRAME)
        if before:
            assert (await client.response()).outline == (200, "hello")
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert await client.reader.readexactly(7) == b"\x81\x05hello"


async def test_frame_in_the_same_write_as_the_handshake_is_read(server: Server) -> None:
    async with connect(server) as client:
        await client.send(
            request("GET /ws HTTP/1.1", "Connection: Upgrade", *HANDSHAKE, body=HELLO_FRAME)
        )
        await client.reader.readuntil(b"\r\n\r\n")

        assert await client.reader.readexactly(7) == b"\x81\x05hello"


@pytest.mark.parametrize(
    ("field", "refusal"),
    [
        ("a: " + "b" * 20_000, (431, "FIELD_TOO_LARGE")),
        ("Content-Length: 00", (400, "HANDSHAKE_INVALID")),
    ],
)
async def test_handshake_that_the_websocket_protocol_cannot_read_is_refused(
    server: Server, field: str, refusal: tuple[int, str]
) -> None:
    handshake = request("GET /ws HTTP/1.1", "Connection: Upgrade", *HANDSHAKE, field)

    (response,) = await exchange(server, handshake)

    assert response.outline == refusal
    await until(lambda: server.clients.open == 0)


@pytest.mark.parametrize(
    "version", [[], ["Sec-WebSocket-Version: 8"], ["Sec-WebSocket-Version: 13, 8"]]
)
async def test_refusal_of_another_websocket_version_names_the_supported_one(
    server: Server, version: list[str]
) -> None:
    fields = ["Connection: Upgrade", HANDSHAKE[0], HANDSHAKE[2], *version]

    (response,) = await exchange(server, request("GET /ws HTTP/1.1", *fields))

    assert response.outline == (426, "VERSION_NOT_SUPPORTED")
    assert response.fields["sec-websocket-version"] == "13"


@pytest.mark.parametrize(
    "line", ["POST /echo HTTP/1.1", "GET /echo HTTP/1.0", "HEAD /echo HTTP/1.1"]
)
async def test_only_get_of_http_1_1_becomes_a_websocket(server: Server, line: str) -> None:
    async with connect(server) as client:
        await client.send(request(line, "Connection: Upgrade, close", *HANDSHAKE))

        assert (await client.response(line.split()[0])).status == 200


# Responses


async def test_head_has_no_body_even_if_it_is_refused(server: Server) -> None:
    for sent, status in (
        (request("HEAD /echo HTTP/1.1"), 200),
        (request("HEAD /echo HTTP/1.1", "a"), 400),
        (request("HEAD /echo HTTP/1.1", "Content-Length: 1000000"), 413),
    ):
        async with connect(server) as client:
            await client.send(sent)
            assert (await client.response("HEAD")).status == status
            await client.send(LAST) if status == 200 else None
            assert (await client.reader.read(9)) in (b"", b"HTTP/1.1 ")


async def test_every_response_has_strict_transport_security_if_set() -> None:
    async with serve(headers=transport_security(86_400)) as server:
        responses = [
            *await exchange(server, POST + LAST),
            *await exchange(server, b"nonsense\r\n\r\n"),
        ]

    assert [response.status for response in responses] == [200, 200, 400]
    for response in responses:
        assert response.fields["strict-transport-security"] == "max-age=86400; includeSubDomains"
    assert transport_security(0) == []


async def test_fault_of_the_application_is_an_internal_problem(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    (response,) = await exchange(server, request("GET /fail HTTP/1.1"))

    assert response.outline == (500, "INTERNAL")
    assert response.document["outcome"] == "UNKNOWN"
    assert capsys.readouterr().out.count("request.failed") == 1


@pytest.mark.parametrize(
    "path", ["/wrong/longer", "/wrong/shorter", "/wrong/break", "/wrong/end", "/wrong/nothing"]
)
async def test_invalid_response_of_the_application_is_never_sent_as_a_valid_one(
    server: Server, path: str
) -> None:
    async with connect(server) as client:
        await client.send(request(f"GET {path} HTTP/1.1") + LAST)
        got = await client.reader.read()

    assert b"injected" not in got
    assert got.startswith(b"HTTP/1.1 500 ") or got.endswith(b"\r\n\r\nshort")
    assert b"GET /echo" not in got


# The grammar, compared with another parser


def read_by_h11(sent: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes] | None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(sent)
    try:
        head = connection.next_event()
        assert isinstance(head, h11.Request)
        body = b""
        while isinstance(event := connection.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
    except (h11.RemoteProtocolError, AssertionError):
        return None
    return head.method, head.target, list(head.headers), body


LINES = st.sampled_from(
    [b"Host: a", b"host:b", b"Content-Length: 3", b"content-length: 0", b"a:\x01",
     b"Transfer-Encoding: chunked",
     b"Transfer-Encoding: gzip", b"a: b", b" folded", b"a : b", b"a", b": b", b"a: \xff",
     b"Connection: close", b"Expect: 100-continue", b"Content-Length: 3, 3", b"a: b\n", b"\rc: d"]
)  # fmt: skip
BODIES = st.sampled_from(
    [b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"3;x=y\r\nabc\r\n0\r\na: b\r\n\r\n", b"0\r\n\r\n",
     b"3\nabc\n0\n\n", b"-3\r\nabc\r\n0\r\n\r\n", b"3 \r\nabc\r\n0\r\n\r\n"]
)  # fmt: skip


@given(
    line=st.sampled_from([b"GET /a HTTP/1.1", b"POST /a?b HTTP/1.1", b"POST /a HTTP/1.0"]),
    lines=st.lists(LINES, min_size=1, max_size=5),
    body=BODIES,
    noise=st.none() | st.tuples(st.integers(0, 150), st.binary(min_size=1, max_size=2)),
)
@settings(max_examples=400, deadline=None)
def test_accepted_head_is_parsed_as_by_h11(
    line: bytes, lines: list[bytes], body: bytes, noise: tuple[int, bytes] | None
) -> None:
    sent = b"\r\n".join((line, *lines, b"", body))
    if noise is not None:
        at = min(noise[0], len(sent))
        sent = sent[:at] + noise[1] + sent[at:]
    if b"\r\n\r\n" not in sent:
        return
    try:
        head = parse_head(sent[: sent.index(b"\r\n\r\n")])
        framed = ChunkedBody() if head.content_length == CHUNKED else SizedBody(head.content_length)
        content, _ = framed.read(sent[sent.index(b"\r\n\r\n") + 4 :])
    except HttpError:
        return
    if not framed.complete or head.method not in ("GET", "POST"):
        return

    read = read_by_h11(sent)

    assert read is not None, sent
    assert (read[0].decode(), read[3]) == (head.method, content)
    assert read[2] == head.fields


# Packets


SPLIT = (
    POST,
    request("POST /echo HTTP/1.1", "Transfer-Encoding: chunked")
    + b"5;a=b\r\nhello\r\n0\r\nTrailer: b\r\n\r\n",
    request("PUT /ignore HTTP/1.1", "Content-Length: 5", "Upgrade: h2c", "Connection: upgrade")
    + b"hello",
    request("GET /echo HTTP/1.1", "a : b"),
    request("POST /echo HTTP/1.1", "Content-Length: 1000000"),
    request("POST /echo HTTP/1.1", "Transfer-Encoding: chunked", body=b"5\r\nhelloo\r\n0\r\n\r\n"),
)


def outline(responses: Sequence[Response]) -> list[tuple[int, str, str | None]]:
    return [(*each.outline, each.fields.get("connection")) for each in responses]


@pytest.mark.parametrize("sent", SPLIT)
async def test_every_split_into_two_writes_gets_the_same_response(
    server: Server, sent: bytes
) -> None:
    whole = outline(await exchange(server, sent + LAST))

    for at in range(1, len(sent)):
        assert outline(await exchange(server, sent[:at], sent[at:] + LAST)) == whole, sent[:at]


@pytest.mark.parametrize("sent", SPLIT)
async def test_single_bytes_get_the_same_response(server: Server, sent: bytes) -> None:
    whole = outline(await exchange(server, sent + LAST))

    assert outline(await exchange(server, *(bytes([each]) for each in sent + LAST))) == whole


@given(
    requests=st.lists(st.sampled_from(SPLIT), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
@settings(max_examples=60, deadline=None)
async def test_any_split_of_pipelined_requests_gets_the_same_responses(
    server: Server, requests: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(requests) + LAST
    at = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    whole = outline(await exchange(server, stream))

    writes = [stream[start:end] for start, end in pairwise(at)]

    assert outline(await exchange(server, *writes)) == whole


async def test_204_has_no_framing_and_the_connection_goes_on(server: Server) -> None:
    first, second = await exchange(server, request("GET /none HTTP/1.1") + LAST)

    assert (first.status, first.fields.get("transfer-encoding")) == (204, None)
    assert second.status == 200


def test_callback_for_a_request_that_has_ended_is_called_at_once() -> None:
    scope = {"method": "GET", "path": "/", "http_version": "1.1"}
    ended = Exchange(scope, Mock(), keep_alive=True, expects_continue=False, body=b"a")
    ended.disconnect()
    called: list[bool] = []

    ended.on_disconnect(lambda: called.append(True))

    assert called == [True]
    assert ended.take_body() is None


async def test_application_may_close_the_connection(server: Server) -> None:
    (response,) = await exchange(server, request("GET /last HTTP/1.1") + LAST)

    assert response.fields["connection"] == "close"


async def test_nothing_refers_to_a_connection_that_has_ended() -> None:
    async with serve() as server:
        async with connect(server) as client:
            await client.send(POST)
            await client.response()
            (protocol,) = server.uvicorn.server_state.connections
            ended = weakref.ref(protocol)
            del protocol
        await until(lambda: not server.uvicorn.server_state.connections)
        gc.collect()

        assert ended() is None


async def test_shutdown_closes_the_connection_after_the_running_response() -> None:
    async with serve() as server, connect(server) as client:
        await client.send(request("GET /wait HTTP/1.1"))
        await until(lambda: server.echo.requests == ["GET /wait"])
        for connection in tuple(server.uvicorn.server_state.connections):
            connection.shutdown()
        server.echo.proceed.set()

        response = await client.response()
        assert (response.status, response.fields["connection"]) == (200, "close")
        assert await client.is_closed()


async def test_finished_requests_create_no_garbage_cycles(server: Server) -> None:
    async with connect(server) as client:
        await client.send(POST)
        await client.response()
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                await client.send(POST)
                await client.response()
            left = gc.collect()
        finally:
            gc.enable()

    assert left < 50


# Deadlines


async def seconds_until_closed(client: Client) -> float:
    began = asyncio.get_running_loop().time()
    assert await client.is_closed()
    return asyncio.get_running_loop().time() - began


async def trickle(client: Client, unit: bytes) -> None:
    """Send `unit` ten times per deadline, until the server closes the connection."""
    with suppress(ConnectionError):
        while not client.reader.at_eof():
            await client.send(unit)
            await asyncio.sleep(SHORT / 10)


@pytest.mark.parametrize("began", [b"", b"\r\n"])
async def test_silent_connection_is_closed(began: bytes) -> None:
    async with serve(HttpLimits(head_seconds=SHORT)) as server, connect(server) as client:
        await client.send(began)

        assert SHORT * 0.8 < await seconds_until_closed(client) < SHORT * 10


@pytest.mark.parametrize("before", [b"", POST])
async def test_slow_head_is_408_and_the_connection_closed(before: bytes) -> None:
    async with serve(HttpLimits(head_seconds=SHORT)) as server, connect(server) as client:
        await client.send(before)
        if before:
            await client.response()
        await client.send(b"GET / HTTP/1.1\r\n")
        sending = asyncio.create_task(trickle(client, b"a: b\r\n"))

        response = await client.response()

        assert response.outline == (408, "HEAD_TOO_SLOW")
        assert response.fields["connection"] == "close"
        assert await client.is_closed()
        await sending


@pytest.mark.parametrize(
    ("framing", "unit"),
    [
        ("Content-Length: 1000", b"x"),
        ("Transfer-Encoding: chunked", b"1\r\nx\r\n"),
        ("Transfer-Encoding: chunked", b"0\r\n"),
        ("Content-Length: 1000", b""),
    ],
)
@pytest.mark.parametrize("line", ["POST /echo", "GET /echo", "GET /leave"])
async def test_slow_body_is_408_and_the_connection_closed(
    framing: str, unit: bytes, line: str
) -> None:
    async with serve(HttpLimits(request_seconds=SHORT)) as server, connect(server) as client:
        await client.send(request(f"{line} HTTP/1.1", framing), unit)
        unit = b"a: b\r\n" if unit.startswith(b"0") else unit
        sending = asyncio.create_task(trickle(client, unit))

        response = await client.response()

        assert response.outline == (408, "REQUEST_TOO_SLOW")
        assert response.document["outcome"] == "UNKNOWN"
        assert await client.is_closed()
        await sending


async def test_slow_unread_body_closes_the_connection() -> None:
    async with serve(HttpLimits(request_seconds=SHORT)) as server, connect(server) as client:
        await client.send(request("GET /ignore HTTP/1.1", "Content-Length: 1000"))
        assert (await client.response()).status == 200
        sending = asyncio.create_task(trickle(client, b"x"))

        assert SHORT / 2 < await seconds_until_closed(client) < SHORT * 10
        await sending


async def test_slow_response_is_not_bound_by_the_deadline_of_the_request() -> None:
    limits = HttpLimits(head_seconds=SHORT, request_seconds=SHORT, idle_seconds=SHORT)
    async with serve(limits) as server, connect(server) as client:
        await client.send(request("GET /wait HTTP/1.1", "Content-Length: 1", body=b"x"))
        await asyncio.sleep(SHORT * 2)
        server.echo.proceed.set()

        assert (await client.response()).status == 200


async def test_idle_connection_is_closed_after_its_time() -> None:
    limits = HttpLimits(head_seconds=SHORT / 10, idle_seconds=SHORT)
    async with serve(limits) as server, connect(server) as client:
        await client.send(POST)
        await client.response()

        assert SHORT / 2 < await seconds_until_closed(client) < SHORT * 10


async def test_request_within_the_idle_time_restarts_it() -> None:
    async with serve(HttpLimits(idle_seconds=SHORT)) as server, connect(server) as client:
        for _ in range(4):
            await client.send(POST)
            assert (await client.response()).status == 200
            await asyncio.sleep(SHORT / 2)


class SlowReader:
    """A connection with small kernel buffers, which a test reads in parts."""

    def __init__(self, connection: Any, client: socket.socket) -> None:
        self.connection = connection
        self.client = client

    @property
    def unsent(self) -> int:
        """Number of bytes in the buffer of the server's transport."""
        return int(self.connection._transport.get_write_buffer_size())

    async def read(self, size: int) -> bytes:
        """Read at most `size` bytes."""
        async with asyncio.timeout(10):
            return await asyncio.get_running_loop().sock_recv(self.client, size)


@asynccontextmanager
async def slow_reader(server: Server) -> AsyncIterator[SlowReader]:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", server.port))
        await until(lambda: server.clients.open == 1)
        [connection] = server.uvicorn.server_state.connections
        accepted = connection._transport.get_extra_info("socket")  # type: ignore[union-attr]
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield SlowReader(connection, client)


async def test_small_rest_of_the_last_response_has_a_deadline() -> None:
    async with serve(HttpLimits(write_seconds=SHORT)) as server, slow_reader(server) as slow:
        body = b"x" * 40_000
        fields = (f"Content-Length: {len(body)}", "Connection: close")
        slow.client.sendall(request("POST /echo HTTP/1.1", *fields, body=body))
        await until(lambda: slow.unsent > 0)
        assert slow.connection.writable  # no deadline was set before the connection closed

        await until(lambda: server.clients.open == 0)


async def test_rest_of_the_last_response_has_a_deadline_after_most_of_it_was_read() -> None:
    async with serve(HttpLimits(write_seconds=1)) as server, slow_reader(server) as slow:
        slow.client.sendall(request("GET /whole HTTP/1.1", "Connection: close"))
        await until(lambda: not slow.connection.writable)
        while not slow.connection.writable:
            assert await slow.read(2000)
        assert slow.unsent > 0
        assert server.clients.open == 1

        await until(lambda: server.clients.open == 0)


async def test_next_request_waits_until_the_previous_response_is_read() -> None:
    async with serve() as server, slow_reader(server) as slow:
        slow.client.sendall(request("GET /whole HTTP/1.1") + request())
        await until(lambda: not slow.connection.writable)
        await until(lambda: not server.uvicorn.server_state.tasks)
        assert server.echo.requests == ["GET /whole"]

        while len(server.echo.requests) < 2:
            assert await slow.read(8000)


@pytest.mark.parametrize("fields", [[], ["Connection: close"]])
async def test_client_that_does_not_read_is_disconnected(fields: list[str]) -> None:
    async with serve(HttpLimits(write_seconds=SHORT)) as server, connect(server) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(request("GET /large HTTP/1.1", *fields))
        await until(lambda: server.clients.open == 1)

        await until(lambda: server.clients.open == 0)


async def test_client_that_reads_slowly_is_served_to_the_end() -> None:
    async with serve(HttpLimits(write_seconds=SHORT)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 20)
        writer.write(request("GET /large HTTP/1.1", "Connection: close"))
        size = 0
        while part := await reader.read(1 << 20):
            size += len(part)
            await asyncio.sleep(SHORT / 4)
        writer.close()

        assert size > 20_000_000


async def test_client_that_neither_reads_nor_closes_is_disconnected_after_a_refusal() -> None:
    async with serve(HttpLimits(linger_seconds=SHORT)) as server, connect(server) as client:
        await client.send(b"nonsense\r\n\r\n")
        assert (await client.response()).status == 400
        assert server.clients.open == 1  # until the client closes, or until a deadline

        await until(lambda: server.clients.open == 0)


# Disconnects and logs


@pytest.mark.parametrize("path", ["/leave", "/called-back"])
async def test_application_receives_the_disconnect_of_the_client(path: str) -> None:
    async with serve() as server:
        async with connect(server) as client:
            await client.send(request(f"GET {path} HTTP/1.1"))
        async with asyncio.timeout(5):
            await server.echo.disconnected.wait()


async def test_hostile_clients_cause_no_log_lines(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as server:
        for number in range(60):
            async with connect(server) as client:
                await client.send(
                    (b"nonsense\r\n\r\n", request("GET /large HTTP/1.1") * 20)[number % 2]
                )
                await client.reader.read(1)
                client.writer.transport.abort()
        await until(lambda: not server.clients.open)
        await until(lambda: not server.uvicorn.server_state.tasks)

    assert capsys.readouterr().out == ""
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []


@pytest.mark.parametrize(
    "sent", [b"", POST, b"GET /", b"nonsense\r\n\r\n", request("GET /large HTTP/1.1") * 3]
)
async def test_server_shuts_down_despite_any_client(sent: bytes) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve())
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await Client(reader, writer).send(sent)
        await until(lambda: server.clients.open == 1)

        async with asyncio.timeout(5):
            await stack.aclose()
            await until(lambda: server.clients.open == 0)
        writer.close()


# Limits on connections


async def test_total_number_of_connections_is_limited() -> None:
    async with serve(clients=ConnectionCounts(total=2, per_address=9)) as server:
        async with connect(server), connect(server), connect(server) as third:
            response = await third.response()
            assert response.outline == (503, "TOO_MANY_CONNECTIONS")
            assert response.fields["retry-after"] == "5"
            assert await third.is_closed()
        await until(lambda: server.clients.open == 0)
        assert [each.status for each in await exchange(server, LAST)] == [200]


async def test_connections_of_an_address_are_limited() -> None:
    clients = ConnectionCounts(total=9, per_address=1)
    async with (
        serve(clients=clients) as server,
        connect(server) as first,
        connect(server) as second,
    ):
        assert (await second.response()).outline == (429, "TOO_MANY_CONNECTIONS")
        await first.send(POST)
        assert (await first.response()).status == 200


async def test_number_of_open_refused_connections_is_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.http1.connection._MAX_REFUSED", 1)
    async with (
        serve(clients=ConnectionCounts(total=1, per_address=9)) as server,
        connect(server),
        connect(server) as second,
        connect(server) as third,
    ):
        assert (await second.response()).status == 503
        assert await third.is_closed()
        second.writer.close()
        await until(lambda: server.clients.refused == 0)


async def test_trusted_proxy_has_no_limit_per_address() -> None:
    clients = ConnectionCounts(total=9, per_address=1, proxies=["127.0.0.0/8", "::1"])
    async with serve(clients=clients) as server, connect(server):
        assert [each.status for each in await exchange(server, LAST)] == [200]


# Limits on unfinished input

TOO_MUCH = "TOO_MUCH_UNFINISHED_INPUT"
UNFINISHED = request("POST /echo HTTP/1.1", "Content-Length: 90000", body=b"x" * 60_000)


def bounded(
    *, total: int = 100_000, per_address: int = 100_000, proxy: str = ""
) -> ConnectionCounts:
    return ConnectionCounts(
        total=99,
        per_address=99,
        unfinished_total=total,
        unfinished_per_address=per_address,
        proxies=[proxy] if proxy else [],
    )


@pytest.mark.parametrize(
    "unfinished",
    [
        UNFINISHED,
        request(
            "POST /echo HTTP/1.1",
            "Transfer-Encoding: chunked",
            body=b"ea60\r\n" + b"x" * 59_999,
        ),
        b"GET / HTTP/1.1\r\n" + b"a: %b\r\n" % (b"b" * 7_000) * 8,
    ],
    ids=["body", "chunks", "head"],
)
async def test_unfinished_input_of_an_address_is_limited(unfinished: bytes) -> None:
    async with (
        serve(clients=bounded(per_address=100_000, total=10**9)) as server,
        connect(server) as first,
        connect(server) as second,
    ):
        await first.send(unfinished)
        await until(lambda: server.clients.unfinished.total > 50_000)
        await second.send(unfinished)

        response = await second.response()

        assert response.outline == (429, TOO_MUCH)
        assert response.fields["retry-after"] == "5"
    await until(lambda: server.clients.unfinished.total == len(server.clients.unfinished) == 0)


async def test_input_after_a_running_request_is_limited_and_closes_the_connection() -> None:
    async with (
        serve(clients=bounded(per_address=100_000)) as server,
        connect(server) as first,
        connect(server) as second,
    ):
        await first.send(UNFINISHED)
        await until(lambda: server.clients.unfinished.total == 60_000)
        await second.send(request("GET /wait HTTP/1.1"))
        await until(lambda: "GET /wait" in server.echo.requests)
        await second.send(b"GET /echo HTTP/1.1\r\na: ", b"x" * 60_000)
        server.echo.proceed.set()

        assert (await second.response()).fields["connection"] == "close"
        assert server.clients.unfinished.total == 60_000


async def test_unfinished_input_is_limited_in_total() -> None:
    clients = bounded(total=61_000, per_address=10**9)
    async with (
        serve(clients=clients) as server,
        connect(server) as first,
        connect(server) as second,
        connect(server) as third,
    ):
        await first.send(UNFINISHED)
        await until(lambda: clients.unfinished.total == 60_000)
        await second.send(UNFINISHED)
        await third.send(request("POST /echo HTTP/1.1", "Content-Length: 16001", body=b"x" * 16000))
        assert (await second.response()).outline == (503, TOO_MUCH)
        await third.send(b"x")
        assert (await third.response()).status == 200


async def test_trusted_proxy_has_no_limit_of_unfinished_input_per_address() -> None:
    clients = bounded(per_address=1, total=10**9, proxy="127.0.0.0/8")
    async with serve(clients=clients) as server, connect(server) as client:
        await client.send(UNFINISHED)
        await until(lambda: clients.unfinished.total == 60_000)
        await client.send(b"x" * 30_000)
        assert (await client.response()).status == 200


async def test_finished_or_ended_input_is_not_counted() -> None:
    clients = bounded()
    async with serve(clients=clients) as server:
        async with connect(server) as client:
            for _ in range(3):
                await client.send(UNFINISHED)
                await until(lambda: clients.unfinished.total == 60_000)
                await client.send(b"x" * 30_000)
                assert (await client.response()).status == 200
                assert clients.unfinished.total == 0
        for line in ("POST /echo HTTP/1.1", "POST /wait HTTP/1.1"):
            async with connect(server) as client:
                await client.send(
                    request(line, "Content-Length: 90000", body=b"x" * 60_000),
                )
                await client.send(b"x" * 100)
                if "/wait" in line:
                    await until(lambda: clients.unfinished.total > 60_000)
                    server.echo.proceed.set()
                    assert (await client.response()).status == 200
                    await until(lambda: clients.unfinished.total == 0)
            await until(lambda: clients.unfinished.total == len(clients.unfinished) == 0)


async def test_ended_connection_is_not_counted() -> None:
    async with serve(clients=ConnectionCounts(total=50, per_address=40)) as server:
        sends = [
            LAST, b"nonsense\r\n\r\n", b"GET", b"", POST[:-1], request("GET /large HTTP/1.1"),
            request("GET /fail HTTP/1.1"), request("GET /leave HTTP/1.1"),
            request("GET /ws HTTP/1.1", "Connection: Upgrade", *HANDSHAKE),
        ]  # fmt: skip
        for _ in range(3):
            async with AsyncExitStack() as stack:
                for sent in sends * 5:
                    client = await stack.enter_async_context(connect(server))
                    await client.send(sent)
                assert server.clients.open <= 40
        await until(lambda: server.clients.open == 0 and server.clients.refused == 0)
        assert not server.clients._by_network
        assert not server.uvicorn.server_state.connections


async def test_websocket_is_counted_while_it_is_open() -> None:
    async with serve() as server:
        async with connect(server) as client:
            await client.send(request("GET /ws HTTP/1.1", "Connection: Upgrade", *HANDSHAKE))
            await client.reader.readuntil(b"\r\n\r\n")
            assert server.clients.open == 1
        await until(lambda: server.clients.open == 0)


async def test_idle_connections_are_held_and_cost_little() -> None:
    count = 500
    async with serve() as server:
        await exchange(server, LAST)
        before = resident_bytes()
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(count)]
        for each in held:
            each.send(POST)
        await until(lambda: server.uvicorn.server_state.total_requests == count + 1)

        assert server.clients.open == count
        assert resident_bytes() - before < count * 20_000
        for each in held:
            each.close()
        await until(lambda: server.clients.open == 0)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


# TLS and proxies


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    pem, encoding = serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(signed.public_bytes(encoding))
    (folder / "key.pem").write_bytes(key.private_bytes(encoding, pem, serialization.NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"


async def test_requests_over_tls_have_the_scheme_https(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    async with serve(
        HttpLimits(linger_seconds=SHORT), ssl_certfile=cert, ssl_keyfile=key
    ) as server:
        context = ssl.create_default_context(cafile=cert)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port, ssl=context, server_hostname="localhost"
        )
        client = Client(reader, writer)
        writer.write(POST + b"nonsense\r\n\r\n")
        first, second = await client.responses()
        writer.close()

    assert first.document["scheme"] == "https"
    assert second.outline == (400, "MALFORMED_HTTP")


FORWARDED = ("X-Forwarded-For: 203.0.113.9, 127.0.0.1", "X-Forwarded-Proto: https")


async def test_forwarded_client_and_scheme_of_a_trusted_proxy_are_used() -> None:
    async with serve(proxy_headers=True, forwarded_allow_ips=["127.0.0.1/32"]) as server:
        (response,) = await exchange(
            server, request("GET /echo HTTP/1.1", *FORWARDED, "Connection: close")
        )

    assert response.document["client"][0] == "203.0.113.9"
    assert response.document["scheme"] == "https"


async def test_forwarded_client_of_an_untrusted_client_is_ignored() -> None:
    async with serve(proxy_headers=True, forwarded_allow_ips=["192.0.2.1/32"]) as server:
        (response,) = await exchange(
            server, request("GET /echo HTTP/1.1", *FORWARDED, "Connection: close")
        )

    assert response.document["client"][0] == "127.0.0.1"
    assert response.document["scheme"] == "http"


# Clients of other languages

_JAVA = """
import java.net.URI;
import java.net.http.*;

public class Client {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();  // offers h2c
        for (int number = 0; number < 3; number++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString("hello " + number)).build();
            HttpResponse<String> response =
                client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.body());
        }
    }
}
"""


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    return out.decode()


@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed")
async def test_java_client_that_offers_http_2_is_served(server: Server, tmp_path: Path) -> None:
    program = tmp_path / "Client.java"
    program.write_text(_JAVA)

    got = await output("java", str(program), f"http://127.0.0.1:{server.port}/echo")

    lines = got.splitlines()
    bodies = [json.loads(line.removeprefix("200 "))["body"] for line in lines]
    assert bodies == ["hello 0", "hello 1", "hello 2"]
    assert "upgrade" in got.lower()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("options", [["--http2"], ["--http1.0"], ["-H", "Expect: 100-continue"],
                                     ["-H", "Transfer-Encoding: chunked"]])  # fmt: skip
async def test_curl_is_served(server: Server, options: list[str]) -> None:
    url = f"http://127.0.0.1:{server.port}/echo"

    got = await output("curl", "-sS", "-m", "10", *options, "-d", "hello", url, "-d", "hello", url)

    assert got.count('"body": "hello&hello"') == 2
