"""The transport of a WebSocket: received frames, their rate, and fair scheduling.

uvicorn's protocol class does the handshake, the ASGI events up to `websocket.accept` and the pings;
`websockets` parses the frames. Messages are not passed as ASGI events: a queue, a task switch and a
dictionary for each frame would cost more than the frame itself.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from websockets.frames import Opcode

from gateway.problems import CLOSE_CODES
from gateway.socket_limits import FrameBudget
from gateway.unfinished_input import FREE_BYTES
from gateway.unfinished_message import UnfinishedMessage
from gateway.websocket_closing import WebSocketClosing
from gateway.websocket_interface import Receiver
from postbus import reasons
from shared.errors import ServiceError

__all__ = ["WebSocketProtocol"]

_PARSE_BYTES: Final = 1024
"""Bytes that are parsed before their frames are handled: at most 170 frames, about 0.5 ms."""
_TURN_SECONDS: Final = 0.002
"""Longest time for which one socket is served before other tasks run."""


class WebSocketProtocol(WebSocketClosing):
    """A Socket, which the application gets in `scope["state"]["socket"]`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._budget = FrameBudget(1, 1)
        self._received = bytearray()
        self._frames: list[Any] = []
        self._message = bytearray()
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
            self._receive_after_close(data)
        else:
            self._received += data
            if self._continuation is None:
                self._handle_frames()

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

    def _discard_received(self) -> None:
        self._received.clear()
        self._frames.clear()
        self._message.clear()
        self.conn.reader.buffer.clear()
        self._unfinished.discard()
