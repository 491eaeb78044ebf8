"""The interface between a WebSocket and the code that handles its messages."""

import asyncio
from typing import Protocol

__all__ = ["Receiver", "Socket"]


class Receiver(Protocol):
    """Receives the messages of a socket. Its methods do not block and never raise."""

    def receive(self, message: bytes) -> asyncio.Future[None] | None:
        """Receive a text message (valid UTF-8); the next one once the returned future is done."""

    def disconnected(self) -> None:
        """Handle the end of the socket, which either side has closed."""


class Socket(Protocol):
    """The socket of one client, as its receiver uses it."""

    max_bytes: int
    """Largest message that is accepted."""

    @property
    def waiting_bytes(self) -> int:
        """Return the number of bytes that are buffered beyond the buffers of the kernel."""

    def write(self, *parts: bytes) -> None:
        """Send one text message, of the joined parts; without effect if the socket is closed."""

    async def drain(self) -> None:
        """Return once the client has read enough, or has disconnected."""

    def close(self, code: int, reason: str) -> None:
        """Close with a close frame, before any further frame is handled."""
