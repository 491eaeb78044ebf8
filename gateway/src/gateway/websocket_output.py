"""The messages that are sent over a WebSocket."""

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

__all__ = ["WebSocketOutput"]


class WebSocketOutput(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which sends messages without ASGI events, several in one write."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._output: list[bytes] = []
        self._output_bytes = 0
        self._flushing: asyncio.Handle | None = None

    @property
    def waiting_bytes(self) -> int:
        """See Socket."""
        return self._output_bytes + self.transport.get_write_buffer_size()

    def write(self, *parts: bytes) -> None:
        """See Socket. Messages of one iteration of the event loop are sent together."""
        if self.close_sent or self.disconnected:
            return
        size = sum(map(len, parts))
        self._output += (_head(size), *parts)
        self._output_bytes += size
        if self._flushing is None:
            self._flushing = self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        output = self._output + self.conn.data_to_send()
        if output and not self.transport.is_closing():
            self.transport.writelines(output)
        self._output, self._output_bytes = [], 0

    async def drain(self) -> None:
        """See Socket."""
        self._flush()
        await self.writable.wait()


def _head(size: int) -> bytes:
    """Return the head of an unfragmented, unmasked text frame (RFC 6455, section 5.2)."""
    if size < 126:
        return b"\x81%c" % size
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2)
    return b"\x81\x7f" + size.to_bytes(8)
