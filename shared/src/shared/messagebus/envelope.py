"""Request and Reply as they travel, written and read by google's classes: every call pays twice."""

import time
from dataclasses import dataclass
from typing import Any, Self

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


@dataclass(slots=True)
class Call:
    """One call, ready to be sent."""

    request: bytes
    """The encoded Request."""
    deadline: float
    """When the caller stops waiting, in seconds since the epoch."""
    replayed: bool = False
    """Set with the answer: whether it is that of an operation that was done before."""

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
        return cls(request.SerializeToString(), deadline)

    @property
    def remaining(self) -> float:
        """Seconds until the deadline, negative if it has passed."""
        return self.deadline - time.time()


def read_request(data: bytes) -> Any:
    """Return the Request in `data`, as google's class; INVALID_ARGUMENT if it is malformed."""
    return parse_as(_Request, data)


def payload_reply(payload: bytes, sequence: int = 0, *, replayed: bool = False) -> bytes:
    """Return an encoded Reply that carries a response message; `sequence` counts a stream's."""
    reply: bytes = _Reply(payload=payload, sequence=sequence, replayed=replayed).SerializeToString()
    return reply


def completed_reply(sequence: int) -> bytes:
    """Return an encoded Reply that ends a stream."""
    reply: bytes = _Reply(completed={}, sequence=sequence).SerializeToString()
    return reply


def error_reply(error: ServiceError, trace_id: str = "") -> bytes:
    """Return an encoded Reply that carries `error`."""
    return encode(Reply(error=error.to_message(trace_id)))


def payload_of(reply: bytes, call: Call | None = None) -> bytes:
    """Return the payload of an encoded Reply, and note in `call` whether it was there before.

    Raises the error that it carries.
    """
    message = _read(reply)
    if call is not None:
        call.replayed = message.replayed
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
