"""Replies: the envelope of a response or an error, written and read by upb for speed."""

from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError

from postbus import reasons
from postbus.bus.v1 import Outcome, Reply
from shared.bus.call import Call
from shared.bus.call_errors import unavailable
from shared.errors import ServiceError, internal
from shared.field_limit import UNCOUNTED_BYTES, exceeds_field_limit
from shared.metadata import OutgoingMetadata, read_metadata
from shared.wire import encode, message_class

__all__ = [
    "CallResult",
    "completed_reply",
    "error_reply",
    "next_payload",
    "payload_reply",
    "result_of",
    "with_metadata",
    "with_unknown_outcome",
]

_Reply: Any = message_class("postbus.bus.v1.Reply")
_MAX_ERROR_BYTES: Final = 64 * 2**10
"""Largest Reply with an error."""


class CallResult(NamedTuple):
    """The response of a successful call."""

    payload: bytes
    """The encoded response message."""
    replayed: bool
    """Whether it is the stored reply of an earlier execution of the operation."""
    caller_revision: int
    """Revision of the caller's account; 0 if it is not higher than that of the Request."""
    reply: Any = None
    """The whole Reply, of upb's class, with `headers` and `trailers` for `read_metadata`."""


def payload_reply(
    payload: bytes, sequence: int = 0, *, replayed: bool = False, caller_revision: int = 0
) -> bytes:
    """Return an encoded Reply with a response message; `sequence` numbers the replies of a stream.

    `caller_revision` is 0 unless it is higher than that of the Request.
    """
    reply = _Reply(payload=payload, sequence=sequence, replayed=replayed)
    if caller_revision:
        reply.caller_revision = caller_revision
    encoded: bytes = reply.SerializeToString()
    return encoded


def completed_reply(sequence: int) -> bytes:
    """Return an encoded Reply for the end of a stream."""
    reply: bytes = _Reply(completed={}, sequence=sequence).SerializeToString()
    return reply


def error_reply(error: ServiceError, trace_id: str = "") -> bytes:
    """Return an encoded Reply with `error`, of 64 KiB at most.

    A larger error is sent without its violations; its texts are short, see ServiceError.
    """
    message = error.to_message(trace_id)
    reply = encode(Reply(error=message))
    if len(reply) > _MAX_ERROR_BYTES:
        message.violations = []
        reply = encode(Reply(error=message))
    return reply


def with_unknown_outcome(reply: bytes) -> bytes:
    """Return an encoded Reply; if it is an error, with the outcome UNKNOWN."""
    message = _Reply.FromString(reply)
    if not message.HasField("error"):
        return reply
    message.error.outcome = int(Outcome.UNKNOWN)
    encoded: bytes = message.SerializeToString()
    return encoded


def result_of(reply: bytes) -> CallResult:
    """Return the result in an encoded Reply, or raise its error."""
    message = _read(reply)
    return CallResult(message.payload, message.replayed, message.caller_revision, message)


def next_payload(reply: bytes, sequence: int, call: Call) -> bytes | None:
    """Return the payload of an encoded Reply of a stream, None at its end, or raise its error.

    Sets the metadata of `call`.

    Raises UNAVAILABLE, STREAM_BROKEN if its number is not `sequence`: a reply was lost.
    """
    message = _read(reply)
    if message.sequence != sequence:
        raise unavailable(reasons.STREAM_BROKEN, "A reply of the stream was lost.", Outcome.UNKNOWN)
    if sequence == 1 and message.headers:
        call.headers = read_metadata(message.headers)
    if not message.HasField("completed"):
        payload: bytes = message.payload
        return payload
    if message.trailers:
        call.trailers = read_metadata(message.trailers)
    return None


def _read(reply: bytes) -> Any:
    if len(reply) > UNCOUNTED_BYTES and exceeds_field_limit(_Reply, reply):
        raise internal()  # as below
    try:
        message = _Reply.FromString(reply)
    except DecodeError:  # the caller is not at fault, and the call may have had an effect
        raise internal() from None
    if message.HasField("error"):
        error = ServiceError.from_message(message.error)
        error.reply_headers = read_metadata(message.headers)
        error.reply_trailers = read_metadata(message.trailers)
        raise error
    return message


def with_metadata(
    reply: bytes, headers: OutgoingMetadata | None, trailers: OutgoingMetadata | None
) -> bytes:
    """Return an encoded Reply with header and trailer fields: protobuf appends repeated fields."""
    if headers is None and trailers is None:
        return reply
    more = _Reply()
    for target, source in ((more.headers, headers), (more.trailers, trailers)):
        for name, values in source.values.items() if source is not None else ():
            target.add(name=name, values=values)
    added: bytes = more.SerializeToString()
    return reply + added
