"""The same call over 64 WebSockets and over 64 HTTP connections, with one minimal client."""

import asyncio
import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from typing import Final, cast

from bench.http.contenders import POST, TOKEN, Contender, running
from bench.process import cpu_seconds
from bench.report import Result
from bench.rpc.contenders import QUICK

__all__ = ["sockets"]

_SOCKETS: Final = 64
_SECONDS: Final = 1.0 if QUICK else 5.0
_METHOD: Final = "postbus.posts.v1.PostsService.CreatePost"


def sockets(ours: Contender, url: str) -> Iterator[Result]:
    """Measure both, with one and with eight concurrent calls on each WebSocket."""
    print("bench: http: WebSocket", flush=True)
    with running(ours, url) as (gateway, _):
        rest = asyncio.run(_measure(_Http, 1, gateway))
        for in_flight in (1, 8):
            found = asyncio.run(_measure(_WebSocket, in_flight, gateway))
            for measure, unit in (("rate", "calls/s"), ("cpu", "s/1,000 calls")):
                name = "calls" if measure == "rate" else "CPU of the gateway"
                yield Result(
                    measure=f"http: {name} over {_SOCKETS} WebSockets, {in_flight} in flight each",
                    unit=unit,
                    ours=found[measure],
                    rivals={"REST, 64 connections": rest[measure]},
                )


class _Client(asyncio.Protocol):
    """One connection with a constant number of concurrent calls; `completed` counts them."""

    def __init__(self, in_flight: int) -> None:
        self.in_flight = in_flight
        self.completed = 0
        self.buffer = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.begin()

    def begin(self) -> None:
        raise NotImplementedError


class _Http(_Client):
    def begin(self) -> None:
        body = json.dumps(POST).encode()
        self._request = (
            b"POST /v1/posts HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s"
            % (TOKEN.encode(), len(body), body)
        )
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if found and len(rest) >= int(head.lower().partition(b"content-length:")[2].split()[0]):
            if not head.startswith(b"HTTP/1.1 201"):
                raise RuntimeError(head.decode())
            self.completed += 1
            self.buffer = b""
            self.transport.write(self._request)


class _WebSocket(_Client):
    def begin(self) -> None:
        self._open = False
        self._calls = {
            b"%d" % number: _frame(
                {"id": str(number), "call": {"method": _METHOD, "request": POST}}
            )
            for number in range(self.in_flight)
        }
        self.transport.write(
            b"GET /ws HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self._open:
            head, found, self.buffer = self.buffer.partition(b"\r\n\r\n")
            if not found:
                self.buffer = head
                return
            if b" 101 " not in head:
                raise RuntimeError(head.decode())
            self._open = True
            self.transport.write(_frame({"id": "a", "authenticate": {"accessToken": TOKEN}}))
        again: list[bytes] = []
        for text in self._texts():
            id_ = text[7 : text.index(b'"', 7)]  # {"id":"
            if id_ == b"a":
                again += self._calls.values()
                continue
            if b'"result"' not in text:
                raise RuntimeError(text.decode())
            self.completed += 1
            again.append(self._calls[id_])
        self.transport.write(b"".join(again))

    def _texts(self) -> Iterator[bytes]:
        while len(self.buffer) >= 4:
            length, at = self.buffer[1], 2
            if length == 126:
                length, at = struct.unpack_from(">H", self.buffer, 2)[0], 4
            elif length == 127:
                return
            if len(self.buffer) < at + length:
                return
            opcode, text = self.buffer[0] & 15, self.buffer[at : at + length]
            self.buffer = self.buffer[at + length :]
            if opcode == 1:
                yield text
            elif opcode == 8:
                raise RuntimeError(f"the gateway closed the WebSocket: {text[2:].decode()}")


def _frame(document: object) -> bytes:
    """Return a text frame with a mask of zeros."""
    text = json.dumps(document).encode()
    length = (
        bytes([0x80 | len(text)]) if len(text) < 126 else b"\xfe" + struct.pack(">H", len(text))
    )
    return b"\x81" + length + bytes(4) + text


async def _measure(
    kind: Callable[[int], _Client], in_flight: int, gateway: int
) -> dict[str, float]:
    loop, port = asyncio.get_running_loop(), int(os.environ["BENCH_PORT"])
    failures: list[object] = []
    loop.set_exception_handler(lambda _loop, context: failures.append(context.get("exception")))
    clients = [
        (await loop.create_connection(lambda: kind(in_flight), "127.0.0.1", port))[1]
        for _ in range(_SOCKETS)
    ]
    await asyncio.sleep(1)
    calls, cpu, began = sum(each.completed for each in clients), cpu_seconds([gateway]), time.time()
    await asyncio.sleep(_SECONDS)
    calls, cpu = sum(each.completed for each in clients) - calls, cpu_seconds([gateway]) - cpu
    took = time.time() - began
    for each in clients:
        each.transport.abort()
    if failures:
        raise RuntimeError(f"{len(failures)} connections failed: {failures[0]}")
    return {"rate": calls / took, "cpu": cpu / calls * 1000}
