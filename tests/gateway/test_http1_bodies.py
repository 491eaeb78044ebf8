"""Bodies of requests over HTTP/1.1: their framing, their limits, and 100 Continue."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http1 import HttpLimits
from gateway.http1.body_framing import (
    EXTENSION_BYTES,
    STEP_CHUNKS,
    TRAILER_BYTES,
)
from tests.gateway.http1_server import (
    BODY_BYTES,
    LAST,
    POST,
    Response,
    Server,
    chunked,
    connect,
    exchange,
    request,
    serve,
    until,
)

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

        response = await client.response()  # no 100 Continue precedes it

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

        response = await client.response()

        assert response.outline == (413, "BODY_TOO_LARGE")
        assert response.document["outcome"] == "UNKNOWN"  # the application has begun
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


async def test_unread_body_is_not_kept() -> None:
    async with serve() as server, connect(server) as client:
        await client.send(request("POST /ignore HTTP/1.1", "Content-Length: 50000"))
        assert (await client.response()).status == 200
        [connection] = server.uvicorn.server_state.connections
        await client.send(b"x" * 40_000)
        await until(lambda: connection._body_bytes == 40_000)  # type: ignore[union-attr]

        assert connection._exchange.buffered == 0  # type: ignore[union-attr]
        assert connection._buffer == b""  # type: ignore[union-attr]


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


async def test_continue_is_not_sent_to_http_1_0() -> None:
    head = request("POST /echo HTTP/1.0", "Content-Length: 5", "Expect: 100-continue")
    async with serve() as server, connect(server) as client:
        await client.send(head)
        await until(lambda: server.echo.requests == ["POST /echo"])  # which waits for the body
        await client.send(b"hello")

        assert (await client.response()).outline == (200, "hello")


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
