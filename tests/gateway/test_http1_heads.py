"""Heads of requests over HTTP/1.1, and upgrades to other protocols."""

import time
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http1.body_framing import (
    ChunkedBody,
    SizedBody,
)
from gateway.http1.head import parse_head
from gateway.http1.head_fields import CHUNKED, HEAD_BYTES, MAX_FIELDS
from gateway.problems import HttpError
from tests.gateway.http1_server import (
    CHUNKED_POST,
    HANDSHAKE,
    HELLO_FRAME,
    LAST,
    POST,
    Server,
    connect,
    exchange,
    request,
    serve,
    until,
)

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
    async with connect(server) as client:
        await client.send(request("GET /echo HTTP/1.0", "Connection: keep-alive"))
        assert (await client.response()).fields["connection"] == "close"
        assert await client.is_closed()
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


async def test_head_in_many_parts_is_searched_once() -> None:
    async with serve() as server, connect(server) as client:
        await client.send(b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n")
        await client.send(b"a: bcdefghij\r\n" * 90 + b"b: " + b"x" * 60_000)
        await until(lambda: len(server.uvicorn.server_state.connections) == 1)
        connection: Any = next(iter(server.uvicorn.server_state.connections))
        await until(lambda: len(connection._buffer) > 60_000)

        began = time.process_time()
        for _ in range(1000):
            connection.data_received(b"x")
        spent = time.process_time() - began

        assert spent < 0.1
        for part in (b"\r", b"\n", b"\r", b"\n"):
            connection.data_received(part)
        assert (await client.response()).status == 200


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

    assert response.outline == (426, "WEBSOCKET_VERSION_UNSUPPORTED")
    assert response.fields["sec-websocket-version"] == "13"


@pytest.mark.parametrize(
    "line", ["POST /echo HTTP/1.1", "GET /echo HTTP/1.0", "HEAD /echo HTTP/1.1"]
)
async def test_only_get_of_http_1_1_becomes_a_websocket(server: Server, line: str) -> None:
    async with connect(server) as client:
        await client.send(request(line, "Connection: Upgrade, close", *HANDSHAKE))

        response = await client.response(line.split()[0])

        assert response.status == 200
        assert "upgrade" not in response.fields


@pytest.mark.parametrize("fields", [[], ["Connection: keep-alive"]])
async def test_upgrade_field_without_the_connection_option_is_ignored(
    server: Server, fields: list[str]
) -> None:
    async with connect(server) as client:
        await client.send(request("GET /echo HTTP/1.1", *fields, *HANDSHAKE))
        response = await client.response()
        await client.send(LAST)

        assert response.outline == (200, "")
        assert "upgrade" not in response.fields
        assert (await client.response()).outline == (200, "")


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
