"""The transport of a WebSocket: received frames, their rate, fair scheduling, closing.

uvicorn's protocol class does the handshake, the ASGI events up to `websocket.accept` and the pings;
`websockets` parses the frames. Messages are not passed as ASGI events: a queue, a task switch and a
dictionary for each frame would cost more than the frame itself.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from websockets.exceptions import InvalidState
from websockets.frames import Opcode

from gateway.problems import CLOSE_CODES
from gateway.socket_limits import FrameBudget
from gateway.unfinished_input import FREE_BYTES
from gateway.unfinished_message import UnfinishedMessage
from gateway.websocket_interface import Receiver
from gateway.websocket_output import WebSocketOutput
from postbus import reasons
from shared.errors import ServiceError

__all__ = ["WebSocketProtocol"]

_PARSE_BYTES: Final = 1024
"""Bytes that are parsed before their frames are handled: at most 170 frames, about 0.5 ms."""
_TURN_SECONDS: Final = 0.002
"""Longest time for which one socket is served before other tasks run."""
_CLOSE_SECONDS: Final = 3.0
"""Time for a client to read everything that was sent, and to send its close frame."""


class WebSocketProtocol(WebSocketOutput):
    """A Socket, which the application gets in `scope["state"]["socket"]`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receiver: Receiver | None = None
        self._budget = FrameBudget(1, 1)
        self._received = bytearray()
        self._frames: list[Any] = []
        self._message = bytearray()
        self._continuation: asyncio.Handle | None = None
        self._reading: asyncio.Future[None] | None = None
        self._unfinished = UnfinishedMessage(self.loop)

    async def run_asgi(self) -> None:
        """Run the application, with this object in the scope."""
        self.scope["state"]["socket"] = self
        await super().run_asgi()

    async def send(self, message: Any) -> None:
        """Send an ASGI event: `websocket.accept`, or a part of a response that refuses it."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True  # otherwise uvicorn logs an error
            self._discard_received()

    def start(
        self,
        receiver: Receiver,
        budget: FrameBudget,
        *,
        max_bytes: int,
        count_unfinished: Callable[..., int],
    ) -> None:
        """Pass messages to `receiver` from now on. Call once, after `websocket.accept`.

        `count_unfinished` is UnfinishedInput.change of the client's address.
        """
        self._unfinished.count_by(count_unfinished)
        self.max_bytes = max_bytes
        self._receiver = receiver
        self._budget = budget
        if self.disconnected or self.close_sent:
            self._end_receiver()
        else:
            self._handle_frames()

    # Receiving

    @property
    def max_bytes(self) -> int:
        """See Socket."""
        return self.conn.max_message_size or 0

    @max_bytes.setter
    def max_bytes(self, value: int) -> None:
        self.conn.max_message_size = value

    def data_received(self, data: bytes) -> None:
        """Receive the head of a handshake, then frames; after a close frame, discard them.

        Frames that arrive before `start` are not parsed. After the first of them, reading is
        paused.
        """
        if not self.handshake_initiated:
            super().data_received(data)  # gateway.http1 has validated it, and passes it alone
        elif self.close_sent:
            if self._ends_with_close_frame(data):
                self.transport.close()
        else:
            self._received += data
            if self._continuation is None:
                self._handle_frames()

    def _ends_with_close_frame(self, data: bytes) -> bool:
        """Return whether `data` ends with the client's close frame, which usually repeats ours.

        The bytes before it are not parsed. If the frame is not found, _CLOSE_SECONDS apply.
        """
        reason = self.conn.close_sent.reason if self.conn.close_sent else ""
        sizes = (0, 2, 2 + len(reason.encode()))
        return any(data[-6 - size :].startswith(bytes((0x88, 0x80 | size))) for size in sizes)

    def _handle_frames(self) -> None:
        """Handle frames for a short time, then let other tasks run.

        While a client does not read its messages, nothing is read from it.
        """
        self._continuation = None
        end = time.perf_counter() + _TURN_SECONDS
        while self._may_read() and (frame := self._next_frame()) is not None:
            self._receive_frame(frame)
            if time.perf_counter() > end:
                self._continuation = self.loop.call_soon(self._handle_frames)
                break
        if self.conn.parser_exc is not None and not self._frames and not self.close_sent:
            self._finish_close()
        if not self.close_sent:
            self._watch_unfinished()
        self._flush()
        self._read_on(not (self._received or self._frames))

    def _watch_unfinished(self) -> None:
        """Count the bytes that are held until more arrive, and limit the time of their message."""
        unfinished = self._unfinished
        partial = len(self.conn.reader.buffer)
        size = partial + len(self._received) + len(self._message)
        if size > FREE_BYTES or unfinished.counted:
            try:
                unfinished.count(size)
            except ServiceError as error:
                self.close(CLOSE_CODES[error.code], error.reason)
                return
        if partial or self.conn.current_size is not None:  # the latter between two fragments
            unfinished.begin(self._may_read, self._close_slow)
        else:
            unfinished.began = None

    def _close_slow(self) -> None:
        self.close(4408, reasons.MESSAGE_TOO_SLOW)

    def _next_frame(self) -> Any:
        while not self._frames and self._received and self.conn.parser_exc is None:
            part = bytes(self._received[:_PARSE_BYTES])
            del self._received[:_PARSE_BYTES]
            self.conn.receive_data(part)
            self._frames = self.conn.events_received()
        return self._frames.pop(0) if self._frames else None

    def _may_read(self) -> bool:
        open_ = self._receiver is not None and not self.close_sent
        return open_ and self._reading is None and self.writable.is_set()

    def _read_on(self, on: bool) -> None:
        if on is self.read_paused and not self.transport.is_closing():
            self.read_paused = not on
            (self.transport.resume_reading if on else self.transport.pause_reading)()

    def _receive_frame(self, frame: Any) -> None:
        if not self._budget.spend(len(frame.data), self.loop.time()):
            self.close(4429, reasons.TOO_MANY_FRAMES)
            return
        if self.conn.current_size is None:  # after the parsed bytes, no message is incomplete
            self._unfinished.began = None
        match frame.opcode:
            case Opcode.TEXT | Opcode.CONT:
                self._message += frame.data
                if frame.fin:
                    self._receive_message()
            case Opcode.BINARY:
                self.close(1003, reasons.TEXT_ONLY)
            case Opcode.PONG:
                self.handle_pong(frame)
            case Opcode.CLOSE:
                self._finish_close()

    def _receive_message(self) -> None:
        message = bytes(self._message)
        self._message.clear()
        self._unfinished.began = None
        try:
            message.decode()
        except UnicodeDecodeError:
            self.close(1007, reasons.INVALID_UTF8)
            return
        if self._receiver is not None:
            self._reading = self._receiver.receive(message)
            if self._reading is not None:
                self._reading.add_done_callback(self._on_message_handled)

    def _on_message_handled(self, _reading: asyncio.Future[None]) -> None:
        """Handle the frames that were received while a large message was parsed."""
        self._reading = None
        if self._continuation is None and not self.disconnected:
            self._handle_frames()

    def resume_writing(self) -> None:
        """Handle the frames that were received while the client did not read."""
        super().resume_writing()
        if (self._received or self._frames) and self._continuation is None:
            self._handle_frames()

    # Closing

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

    def _discard_received(self) -> None:
        self._received.clear()
        self._frames.clear()
        self._message.clear()
        self.conn.reader.buffer.clear()
        self._unfinished.discard()

    def _end_receiver(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.disconnected()
