"""The end of a WebSocket, which either side closes, or the server when it shuts down."""

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any, Final

from websockets.exceptions import InvalidState

from gateway.websocket_interface import Receiver
from gateway.websocket_output import WebSocketOutput
from postbus import reasons

__all__ = ["WebSocketClosing"]

_CLOSE_SECONDS: Final = 3.0
"""Time for a client to read everything that was sent, and to send its close frame."""


class WebSocketClosing(WebSocketOutput, ABC):
    """A WebSocket that closes without the loss of sent messages. A subclass receives frames."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receiver: Receiver | None = None
        self._continuation: asyncio.Handle | None = None

    @abstractmethod
    def _discard_received(self) -> None:
        """Discard the received bytes and frames that are not handled yet."""

    def close(self, code: int, reason: str) -> None:
        """See Socket. The frame is sent even if the transport's buffer is full."""
        if self.close_sent or self.disconnected:
            return
        with suppress(InvalidState):  # the client has sent a close frame
            self.conn.send_close(code, reason)
        self._finish_close()

    def _finish_close(self) -> None:
        """Send the prepared close frame; wait for the client to close the connection.

        Until then, bytes are read and discarded: with unread bytes the kernel would reset the
        connection, and the close frame could be lost (RFC 6455, section 7.1.1).
        """
        self._flush()
        self.close_sent = True
        self._discard_received()
        self.stop_keepalive()
        if self.conn.close_rcvd is not None:
            self.transport.close()
        self._read_on(True)
        self.close_timer = self.loop.call_later(_CLOSE_SECONDS, self.transport.abort)
        self._end_receiver()

    def _read_on(self, on: bool) -> None:
        """Resume or pause the reading of the transport."""
        if on is self.read_paused and not self.transport.is_closing():
            self.read_paused = not on
            (self.transport.resume_reading if on else self.transport.pause_reading)()

    def _receive_after_close(self, data: bytes) -> None:
        """Discard bytes; after the client's close frame, which may repeat ours, close.

        The bytes before it are not parsed. If the frame is not found, _CLOSE_SECONDS apply.
        """
        reason = self.conn.close_sent.reason if self.conn.close_sent else ""
        sizes = (0, 2, 2 + len(reason.encode()))
        if any(data[-6 - size :].startswith(bytes((0x88, 0x80 | size))) for size in sizes):
            self.transport.close()

    def shutdown(self) -> None:
        """Close because the server shuts down."""
        if self._receiver is None:
            super().shutdown()
        else:
            self.close(1012, "RESTART")
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the callbacks of the connection, and discard its buffers."""
        super().connection_lost(exc)
        for handle in (self._continuation, self._flushing):
            if handle is not None:
                handle.cancel()
        self._discard_received()
        self._end_receiver()

    def keepalive_timeout(self) -> None:
        """Close because the client has not sent a pong in time."""
        self.pong_timer = None
        self.close(1011, reasons.PING_TIMEOUT)

    def _end_receiver(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.disconnected()
