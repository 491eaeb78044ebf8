"""The envelopes of a call, Request and Reply, read and written by upb for speed.

A Request carries its remaining budget, not a time: the clocks of two processes differ. Each process
measures by `time.monotonic()`.
"""

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, Self

from google.protobuf.message import DecodeError
from uuid_utils import uuid7

from postbus import reasons
from postbus.bus.v1 import Outcome, Reply
from postbus_runtime.reasons import Reason
from shared.errors import ServiceError, internal
from shared.field_limit import UNCOUNTED_BYTES, exceeds_field_limit
from shared.metadata import NO_METADATA, Metadata, OutgoingMetadata, read_metadata
from shared.wire import encode, message_class, parse_as

__all__ = [
    "Call",
    "CallResult",
    "budget_of",
    "completed_reply",
    "error_reply",
    "next_payload",
    "not_connected",
    "payload_reply",
    "read_request",
    "result_of",
    "spend_budget",
    "unavailable",
    "with_budget",
    "with_metadata",
    "with_unknown_outcome",
]

_Request: Any = message_class("postbus.bus.v1.Request")
_Reply: Any = message_class("postbus.bus.v1.Reply")
_MAX_ERROR_BYTES: Final = 64 * 2**10
"""Largest Reply with an error."""
_LONGEST_BUDGET: Final = 86_400.0
"""Seconds; a longer budget is sent as this one. 32 bits hold milliseconds of 49 days."""
_BUDGET_FIELD: Final = struct.Struct("<BI")
_BUDGET_TAG: Final = 10 << 3 | 5
"""Field 10, `budget_ms`, as fixed32."""


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


@dataclass(slots=True)
class Call:
    """An encoded call with its deadline; it can be sent again."""

    request: bytes
    """The encoded Request, without its budget; see `with_budget`."""
    deadline: float
    """When the caller stops waiting, by `time.monotonic()`."""
    headers: Metadata | None = None
    """Header fields of a stream, once its first reply has arrived; None for none."""
    trailers: Metadata | None = None
    """Trailer fields of a stream, once it has ended without an error; None for none."""

    @classmethod
    def new(
        cls,
        payload: bytes,
        *,
        budget: float,
        access_token: str = "",
        operation_id: str = "",
        traceparent: str = "",
        correlation_id: str = "",
        caller_revision: int = 0,
        client_address: str = "",
        metadata: Metadata = NO_METADATA,
        has_client_timeout: bool = False,
    ) -> Self:
        """Return a call with `payload`, an encoded request message; see postbus.bus.v1.Request.

        The caller waits for `budget` seconds. Without an operation id the call gets a new one.
        """
        now = time.time()
        request = _Request()  # assigning the fields is faster than keyword arguments
        request.payload = payload
        request.deadline_unix_ms = int((now + budget) * 1000)  # for callees of the last release
        request.operation_id = operation_id or str(uuid7())
        request.traceparent = traceparent
        request.sent_unix_ms = int(now * 1000)
        if access_token:
            request.access_token = access_token
        if correlation_id:
            request.correlation_id = correlation_id
        if caller_revision:
            request.caller_revision = caller_revision
        if client_address:
            request.client_address = client_address
        if has_client_timeout:
            request.has_client_timeout = True
        for name in metadata:
            request.metadata.add(name=name, values=metadata[name])
        return cls(request.SerializeToString(), time.monotonic() + budget)

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - time.monotonic()


read_request: Final[Callable[[bytes], Any]] = partial(parse_as, _Request)
"""Returns the Request in `data`, of upb's class; INVALID_ARGUMENT if it is malformed."""


def with_budget(request: bytes, seconds: float) -> bytes:
    """Return an encoded Request with the budget of `seconds`, in place of an earlier budget.

    The field is appended, because the last value of a field counts in protobuf. It is at least
    a millisecond, because 0 means that there is no budget.
    """
    if seconds > _LONGEST_BUDGET:
        seconds = _LONGEST_BUDGET
    return request + _BUDGET_FIELD.pack(_BUDGET_TAG, max(int(seconds * 1000), 1))


def budget_of(request: Any) -> float:
    """Return the budget of a Request that has just arrived, in seconds.

    Callers of the previous release send only a deadline by their clock.
    """
    milliseconds: int = request.budget_ms
    if milliseconds:
        return milliseconds / 1000
    deadline: int = request.deadline_unix_ms
    return deadline / 1000 - time.time()


def spend_budget(request: bytes, seconds: float) -> bytes | None:
    """Return an encoded Request with `seconds` less of budget; None if the budget is used up.

    A malformed Request is returned as it is.
    """
    try:
        remaining = budget_of(read_request(request)) - seconds
    except ServiceError:
        return request
    return with_budget(request, remaining) if remaining > 0 else None


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


def unavailable(reason: Reason, message: str, outcome: int = Outcome.NO_EFFECT) -> ServiceError:
    """Return the error of a call that could not be delivered, or that has no reply."""
    return ServiceError(reason, message, retry_after=1, outcome=outcome)


def not_connected() -> ServiceError:
    """Return UNAVAILABLE, NOT_CONNECTED: the call was not sent, the broker is unreachable."""
    return unavailable(reasons.NOT_CONNECTED, "The message broker is unavailable.")
