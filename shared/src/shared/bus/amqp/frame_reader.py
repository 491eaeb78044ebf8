"""Separate AMQP frames with messages from frames about connections and channels.

Numbers in comments are sections of the specification; see `frame_format`.

There are two ways through a message. If all three frames are in the buffer, as they are for nearly
every call, `complete_message` reads them in one step. Otherwise (a body of several frames, frames
of other channels in between, or bytes that have not arrived) an `IncompleteMessage` collects them.
"""

import struct
from collections.abc import Callable

from shared.bus.amqp.frame_format import (
    BASIC_CLASS,
    BLOCKED,
    BODY,
    CHANNEL_CLOSE,
    CONFIRMS,
    CONNECTION_CLOSE,
    END_BYTE,
    FRAME,
    HEADER,
    MESSAGE_METHODS,
    METHOD,
    OVERHEAD,
    UNBLOCKED,
    ProtocolError,
)
from shared.bus.amqp.message_frames import IncompleteMessage, complete_message, confirmed
from shared.bus.amqp.message_properties import read_short_string
from shared.bus.amqp.received_messages import Closed, Message

__all__ = ["FrameReader"]


class FrameReader:
    """Extracts the messages of registered channels from a stream of AMQP frames.

    `channels` maps the number of a channel to the handler of its messages. All other frames are
    passed to `on_other` unchanged. The reader keeps only an incomplete frame and one incomplete
    message per channel. `on_blocked` is called with True when the broker stops accepting messages,
    and with False when it accepts them again; `on_closing` with the reason when it closes the
    connection, such as "530 NOT_ALLOWED - vhost posts not found".
    """

    def __init__(
        self,
        on_other: Callable[[bytes], None],
        on_blocked: Callable[[bool], None],
        on_closing: Callable[[str], None],
    ) -> None:
        self.channels: dict[int, Callable[[Message], None]] = {}
        self.frame_max = 2**17
        self._on_other = on_other
        self._on_blocked = on_blocked
        self._on_closing = on_closing
        self._rest = b""
        self._contents: dict[int, IncompleteMessage] = {}

    def unregister(self, channel: int) -> None:
        """Pass all frames of a channel to `on_other` from now on."""
        self.channels.pop(channel, None)
        self._contents.pop(channel, None)

    def read(self, data: bytes) -> bool:
        """Parse bytes from the broker; ProtocolError if they are not valid AMQP.

        Returns whether they contained a frame of a registered channel's message.
        """
        buffer = self._rest + data if self._rest else data
        try:
            at, found = self._read_complete(buffer)
        except (IndexError, struct.error) as error:
            raise ProtocolError("a method or header is truncated") from error
        self._rest = buffer[at:]
        return found

    def _read_complete(self, buffer: bytes) -> tuple[int, bool]:
        """Parse all complete frames.

        Returns the offset of the first incomplete one, and whether a message frame was found.
        """
        end, at, found = len(buffer), 0, False
        channels, contents, unpack = self.channels, self._contents, FRAME.unpack_from
        other = 0  # the offset of the first frame that is not yet passed on
        while end - at >= OVERHEAD:
            kind, channel, size = unpack(buffer, at)
            after = at + size + OVERHEAD
            if size > self.frame_max:
                raise ProtocolError("a frame exceeds the negotiated size")
            if after > end:
                break
            if buffer[after - 1] != END_BYTE:
                raise ProtocolError("a frame has no end octet")
            handler = channels.get(channel)
            if handler is None or not self._is_message_frame(kind, channel, buffer, at, size):
                if channel == 0:
                    self._read_connection_method(buffer[at + 7 : after - 1])
                elif handler is not None and buffer[at + 7 : at + 11] == CHANNEL_CLOSE:
                    handler(Closed())
                at = after
                continue
            if other < at:
                self._on_other(buffer[other:at])
            found = True
            if kind != METHOD:
                payload = buffer[at + 7 : after - 1]
                if message := contents[channel].append(kind, payload):
                    del contents[channel]
                    handler(message)
            elif buffer[at + 10] in CONFIRMS:
                handler(confirmed(buffer[at + 7 : after - 1]))
            elif complete := complete_message(buffer, at + 7, after, end, channel):
                message, after = complete
                handler(message)
            else:
                contents[channel] = IncompleteMessage(buffer[at + 7 : after - 1])
            at = other = after
        if other < at:
            self._on_other(buffer[other:at])
        return at, found

    def _read_connection_method(self, payload: bytes) -> None:
        method = payload[:4]
        if method in (BLOCKED, UNBLOCKED):
            self._on_blocked(method == BLOCKED)
        elif method == CONNECTION_CLOSE:  # 10.50: reply code, reply text
            code = payload[4] << 8 | payload[5]
            self._on_closing(f"{code} {read_short_string(payload, 6)}")

    def _is_message_frame(self, kind: int, channel: int, buffer: bytes, at: int, size: int) -> bool:
        """Return whether a frame of a registered channel belongs to a message or confirms one."""
        if kind == METHOD:
            found = size >= 4 and buffer[at + 7 : at + 9] == BASIC_CLASS
            if found and channel in self._contents:
                raise ProtocolError("a method frame inside a message")
            return found and buffer[at + 10] in MESSAGE_METHODS
        if kind in (HEADER, BODY):
            if channel not in self._contents:
                raise ProtocolError("a content frame without a method frame")
            return True
        return False
