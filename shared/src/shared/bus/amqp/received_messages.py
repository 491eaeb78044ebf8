"""Messages from the broker: deliveries, returns, confirms, and the end of a channel."""

import struct
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pamqp import decode

__all__ = ["Closed", "Confirmed", "Delivered", "Message", "Returned"]

_DEATHS: Final = b"\x07x-death"
"""The name of the header that the broker adds to a dead letter (4.2.5.3)."""
_MAX_HEADERS: Final = 8 * 2**10
"""Bytes of headers that are parsed: the time grows with their square, to 0.3 s for 128 KiB."""


class Delivered:
    """A message from a queue (basic.deliver)."""

    __slots__ = (
        "body",
        "correlation_id",
        "encoded_headers",
        "oversized",
        "redelivered",
        "reply_to",
        "routing_key",
        "tag",
        "user_id",
    )

    def __init__(  # called for every message: faster than a dataclass or keywords
        self,
        tag: int,
        routing_key: str,
        correlation_id: str,
        reply_to: str,
        headers: bytes,
        body: bytes,
        user_id: str = "",
        oversized: bool = False,
        redelivered: bool = False,
    ) -> None:
        self.tag = tag
        self.routing_key = routing_key
        self.correlation_id = correlation_id
        self.reply_to = reply_to
        self.encoded_headers = headers
        self.body = body
        self.user_id = user_id
        self.oversized = oversized
        self.redelivered = redelivered

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers, parsed at each access; empty if they are malformed or too large."""
        if not 0 < len(self.encoded_headers) <= _MAX_HEADERS:
            return {}
        try:
            return decode.field_table(self.encoded_headers)[1]
        except (ValueError, struct.error, IndexError, RecursionError):
            return {}

    @property
    def dead_lettered(self) -> bool:
        """Whether a queue has passed the message on, after its sender has sent it elsewhere.

        The owner of a queue chooses the exchange and the key, and the user id stays that of the
        sender (https://www.rabbitmq.com/docs/dlx#effects).
        """
        return _DEATHS in self.encoded_headers


class Returned(NamedTuple):
    """An unroutable mandatory message (basic.return)."""

    routing_key: str
    correlation_id: str
    body: bytes


class Confirmed(NamedTuple):
    """The confirm or refusal of published messages (basic.ack, basic.nack)."""

    tag: int
    multiple: bool
    refused: bool


class Closed(NamedTuple):
    """The broker has closed the channel (channel.close); nothing may be sent on it any more."""


Message = Delivered | Returned | Confirmed | Closed
