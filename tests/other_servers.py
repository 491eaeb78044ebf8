"""Servers of a kind that nobody expects behind an address."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

__all__ = ["KINDS", "Serve", "other_server", "says"]

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def says(data: bytes, *, greets: bool = False, closes: bool = False) -> Serve:
    """Return a server that sends `data`, after the first byte of the client or before."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not greets:
            await reader.read(1)
        writer.write(data)
        await writer.drain()
        while not closes and await reader.read(2**16):
            pass

    return serve


def _floods(data: bytes, begin: bytes = b"") -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(begin)
        while True:
            writer.write(data)
            await writer.drain()

    return serve


def _drips(data: bytes) -> Serve:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            for byte in data:
                writer.write(bytes((byte,)))
                await asyncio.sleep(0.05)

    return serve


async def _echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(2**16):
        writer.write(data)


KINDS: Final[dict[str, Serve]] = {
    "HTTP": says(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "SMTP": says(b"220 mail.example ESMTP\r\n", greets=True),
    "POP3": says(b"+OK ready\r\n", greets=True),
    "MySQL": says(b"\x4a\0\0\0\x0a8.0.35\0" + bytes(66), greets=True),
    "AMQP 1.0": says(b"AMQP\0\1\0\0", closes=True),
    "TLS": says(bytes.fromhex("15030100020246"), closes=True),
    "PostgreSQL": says(b"E\0\0\0\x1fSFATAL\0C08P01\0Munsupported\0\0", closes=True),
    "unknown method of AMQP": says(b"\1\0\0\0\0\0\4\0\x63\0\1\xce"),
    "zeros": says(bytes(4096)),
    "ones": says(b"\xff" * 4096),
    "letters without end": _floods(b"H" * 2**16),
    "zeros without end": _floods(bytes(2**16)),
    "large value": _floods(b"x" * 2**16, b"$1000000000\r\n"),
    "number for everything": says(b"+OK\r\n" * 64),
    "no number": says(b"$-1\r\n" * 64),
    "echo": _echoes,
    "silent": says(b""),
    "closes": says(b"", closes=True, greets=True),
    "slow zeros": _drips(b"\0"),
    "slow letters": _drips(b"HTTP/1.1 200 OK\r\n"),
    "slow digits": _drips(b"1"),
    "slow number of Redis": _drips(b":1"),
}


@asynccontextmanager
async def other_server(serve: Serve) -> AsyncIterator[tuple[int, list[asyncio.StreamWriter]]]:
    """Run a server; give its port and its connections."""
    accepted: list[asyncio.StreamWriter] = []
    ended, tasks = asyncio.Event(), set[asyncio.Task[None] | None]()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        tasks.add(asyncio.current_task())
        serving = [asyncio.ensure_future(serve(reader, writer)), asyncio.create_task(ended.wait())]
        await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], accepted
    finally:
        server.close()
        ended.set()
        for writer in accepted:
            writer.transport.abort()
        await asyncio.gather(*(task for task in tasks if task is not None))
