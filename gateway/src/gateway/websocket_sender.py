"""Send frames to one WebSocket client, which must read them fast enough."""

from typing import Final

from gateway.problems import CLOSE_CODES
from gateway.websocket_frames import error_frame
from gateway.websocket_interface import Socket
from postbus import reasons
from shared.errors import ServiceError
from shared.trace import trace_id

__all__ = ["FrameSender"]

_MAX_WAITING_BYTES: Final = 4 * 2**20
"""Most bytes that are buffered for a client, beyond the buffers of the kernel."""


class FrameSender:
    """Sends the frames of one client's calls and subscriptions."""

    __slots__ = ("_socket",)

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    def send(self, *parts: bytes) -> None:
        """Send one frame, of the joined parts; close the socket if too many bytes are buffered."""
        if self._socket.waiting_bytes > _MAX_WAITING_BYTES:
            self.close(
                ServiceError(
                    reasons.CLIENT_TOO_SLOW,
                    "The client reads its frames too slowly.",
                )
            )
            return
        self._socket.write(*parts)

    def send_error(self, error: ServiceError, *, id_: str, traceparent: str) -> None:
        """Send the error frame for the frame `id_` of the client."""
        self.send(error_frame(error, id_=id_, trace=trace_id(traceparent)))

    async def drain(self) -> None:
        """Return once the client has read enough, or has disconnected."""
        await self._socket.drain()

    def close(self, error: ServiceError) -> None:
        """Close the socket with the code and reason of `error`."""
        self._socket.close(CLOSE_CODES[error.code], error.reason)
