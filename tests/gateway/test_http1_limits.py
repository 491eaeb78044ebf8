"""Deadlines of HTTP/1.1, and limits on connections and on unfinished input."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.http1 import ConnectionCounts, HttpLimits
from tests.gateway.http1_server import (
    HANDSHAKE,
    HELLO_FRAME,
    LAST,
    POST,
    SHORT,
    Client,
    Server,
    connect,
    exchange,
    request,
    serve,
    until,
)

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


@pytest.mark.parametrize("writes", [(b"x",), (b"", b"x")], ids=["together", "apart"])
async def test_slow_response_is_not_bound_by_the_deadline_of_the_request(
    writes: tuple[bytes, ...],
) -> None:
    limits = HttpLimits(head_seconds=SHORT, request_seconds=SHORT, idle_seconds=SHORT)
    async with serve(limits) as server, connect(server) as client:
        await client.send(request("GET /wait HTTP/1.1", "Content-Length: 1", body=writes[0]))
        await client.send(*writes[1:])
        await asyncio.sleep(SHORT * 2)
        server.echo.proceed.set()

        response = await client.response()

        assert (response.status, response.fields.get("connection")) == (200, None)


async def test_websocket_is_not_bound_by_the_deadline_of_the_handshake() -> None:
    async with serve(HttpLimits(head_seconds=SHORT)) as server, connect(server) as client:
        await client.send(request("GET /ws HTTP/1.1", "Connection: Upgrade", *HANDSHAKE))
        await client.reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(SHORT * 2)
        await client.send(HELLO_FRAME)

        assert await client.reader.readexactly(7) == b"\x81\x05hello"


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


async def test_response_waits_until_the_client_reads() -> None:
    async with serve() as server, slow_reader(server) as slow:
        slow.client.sendall(request("GET /large HTTP/1.1"))  # 4 parts of 5 MB
        await until(lambda: not slow.connection.writable)
        for _ in range(100):
            await asyncio.sleep(0)

        assert slow.unsent < 6_000_000


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


# Limits on connections


async def test_total_number_of_connections_is_limited() -> None:
    async with serve(clients=ConnectionCounts(total=2, per_address=9)) as server:
        async with connect(server), connect(server), connect(server) as third:
            response = await third.response()
            assert response.outline == (503, "GATEWAY_FULL")
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


async def test_unix_socket_has_no_limit_per_address(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    async with serve(clients=ConnectionCounts(total=9, per_address=1), uds=path) as server:
        clients = [Client(*await asyncio.open_unix_connection(path)) for _ in range(2)]
        for client in clients:
            await client.send(POST)
            assert (await client.response()).status == 200
        assert server.clients.open == 2
        for client in clients:
            client.writer.close()
            await client.writer.wait_closed()


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
        assert (await second.response()).outline == (503, "GATEWAY_FULL")
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
