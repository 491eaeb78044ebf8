"""Request and Reply as they travel, written and read by google's classes: every call pays twice."""

import time
from dataclasses import dataclass
from typing import Any, Final, Self

from uuid_utils import uuid7

from postbus.bus.v1 import Error, Outcome, Reply
from shared.errors import Code, ServiceError, internal
from shared.wire import encode, from_upb, message_class, parse_as

__all__ = [
    "Call",
    "completed_reply",
    "error_reply",
    "next_payload",
    "not_connected",
    "payload_of",
    "payload_reply",
    "read_request",
    "unavailable",
]

_Request: Any = message_class("postbus.bus.v1.Request")
_Reply: Any = message_class("postbus.bus.v1.Reply")
_MAX_ERROR_BYTES: Final = 64 * 2**10
"""Largest Reply with an error."""
_MAX_ERROR_TEXT: Final = 1000
"""Characters."""


@dataclass(slots=True)
class Call:
    """One call, ready to be sent."""

    request: bytes
    """The encoded Request."""
    deadline: float
    """When the caller stops waiting, in seconds since the epoch."""
    replayed: bool = False
    """Set with the answer: whether it is that of an operation that was done before."""
    caller_revision: int = 0
    """Highest known revision of the caller's account; raised by the answer."""

    @classmethod
    def new(
        cls,
        payload: bytes,
        *,
        deadline: float,
        access_token: str = "",
        operation_id: str = "",
        traceparent: str = "",
        correlation_id: str = "",
        caller_revision: int = 0,
        client_address: str = "",
    ) -> Self:
        """Put an encoded request message into its envelope; see postbus.bus.v1.Request.

        Without an operation id it gets a new one.
        """
        request = _Request()  # field by field: quicker than with keywords
        request.payload = payload
        request.deadline_unix_ms = int(deadline * 1000)
        request.operation_id = operation_id or str(uuid7())
        request.traceparent = traceparent
        request.sent_unix_ms = int(time.time() * 1000)
        if access_token:
            request.access_token = access_token
        if correlation_id:
            request.correlation_id = correlation_id
        if caller_revision:
            request.caller_revision = caller_revision
        if client_address:
            request.client_address = client_address
        return cls(request.SerializeToString(), deadline, caller_revision=caller_revision)

    @property
    def remaining(self) -> float:
        """Seconds until the deadline, negative if it has passed."""
        return self.deadline - time.time()


def read_request(data: bytes) -> Any:
    """Return the Request in `data`, as google's class; INVALID_ARGUMENT if it is malformed."""
    return parse_as(_Request, data)


def payload_reply(
    payload: bytes, sequence: int = 0, *, replayed: bool = False, caller_revision: int = 0
) -> bytes:
    """Return an encoded Reply that carries a response message; `sequence` counts a stream's."""
    reply = _Reply(payload=payload, sequence=sequence, replayed=replayed)
    if caller_revision:
        reply.caller_revision = caller_revision
    encoded: bytes = reply.SerializeToString()
    return encoded


def completed_reply(sequence: int) -> bytes:
    """Return an encoded Reply that ends a stream."""
    reply: bytes = _Reply(completed={}, sequence=sequence).SerializeToString()
    return reply


def error_reply(error: ServiceError, trace_id: str = "") -> bytes:
    """Return an encoded Reply of at most 64 KiB that carries `error`.

    A larger error loses its violations, and all but the beginning of its texts.
    """
    message = error.to_message(trace_id)
    reply = encode(Reply(error=message))
    if len(reply) > _MAX_ERROR_BYTES:
        message.violations = []
        message.reason = message.reason[:_MAX_ERROR_TEXT]
        message.message = message.message[:_MAX_ERROR_TEXT]
        reply = encode(Reply(error=message))
    return reply


def payload_of(reply: bytes, call: Call | None = None) -> bytes:
    """Return the payload of an encoded Reply; raise the error that it carries.

    Sets `replayed` and raises `caller_revision` of `call`.
    """
    message = _read(reply)
    if call is not None:
        call.replayed = message.replayed
        call.caller_revision = max(call.caller_revision, message.caller_revision)
    payload: bytes = message.payload
    return payload


def next_payload(reply: bytes, sequence: int) -> bytes | None:
    """Return the payload of a stream's Reply, None at its end; raise the error that it carries.

    One that does not have the number `sequence` breaks the stream: UNAVAILABLE, STREAM_BROKEN.
    """
    message = _read(reply)
    if message.sequence != sequence:
        raise unavailable("STREAM_BROKEN", "A part of the answer is missing.", Outcome.UNKNOWN)
    return None if message.HasField("completed") else message.payload


def _read(reply: bytes) -> Any:
    try:
        message: Any = parse_as(_Reply, reply)
    except ServiceError:  # not the caller's fault, and what it asked for may have been done
        raise internal() from None
    if message.HasField("error"):
        raise ServiceError.from_message(from_upb(Error, message.error))
    return message


def unavailable(reason: str, message: str, outcome: int = Outcome.NO_EFFECT) -> ServiceError:
    """The error of a call that could not be delivered or answered."""
    return ServiceError(Code.UNAVAILABLE, reason, message, retry_after=1, outcome=outcome)


def not_connected() -> ServiceError:
    """The error of a call that was not sent, because the broker is away."""
    return unavailable("NOT_CONNECTED", "The message broker is away.")
