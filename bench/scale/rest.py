"""A minimal HTTP/1.1 client; a general one would take longer than the measured requests."""

import asyncio

__all__ = ["Rest"]


class Rest:
    """Sends GET requests over a pool of connections."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def get(self, path: str, token: str = "") -> bytes:
        """Return the body of a 200 response; RuntimeError for any other status."""
        reader, writer = await self._connection()
        bearer = f"Authorization: Bearer {token}\r\n" if token else ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\n{bearer}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split()[0])
        body = await reader.readexactly(length)
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(body.decode())
        self._free.append((reader, writer))
        return body

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():  # the server closes idle connections
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def close(self) -> None:
        """Close all idle connections."""
        for _, writer in self._free:
            writer.close()
            await writer.wait_closed()
