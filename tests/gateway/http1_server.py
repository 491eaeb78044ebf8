"""A server with the HTTP/1.1 protocol and a small application, and clients that send raw bytes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from gateway.cors import Cors
from gateway.http1 import ConnectionCounts, HttpLimits, http1
from gateway.http1.exchange import EXCHANGE
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
    if path == "/wrong/twice":
        await send({"type": "http.response.start", "status": 200, "headers": fields})
    whole = b"0123456789"
    bodies = {"/wrong/longer": b"injected injected", "/wrong/break": whole, "/wrong/twice": whole}
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


HANDSHAKE = (
    "Upgrade: WebSocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)
HELLO_FRAME = b"\x81\x85\0\0\0\0hello"
"""A text frame of WebSocket."""
