"""The transport of a WebSocket client, without a network."""

import asyncio
import json
from typing import Any

__all__ = ["MemorySocket"]


class MemorySocket:
    """A gateway.websocket_interface.Socket that stores the sent messages."""

    def __init__(self) -> None:
        self.max_bytes = 0
        self.waiting_bytes = 0
        self.closed: tuple[int, str] | None = None
        self._frames: asyncio.Queue[bytes] = asyncio.Queue()

    def write(self, *parts: bytes) -> None:
        self._frames.put_nowait(b"".join(parts))

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def close(self, code: int, reason: str) -> None:
        self.closed = self.closed or (code, reason)

    async def frame(self) -> dict[str, Any]:
        """Return the next sent frame."""
        async with asyncio.timeout(5):
            frame: dict[str, Any] = json.loads(await self._frames.get())
        return frame
