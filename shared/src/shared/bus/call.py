"""Calls: the Request envelope with its budget, written and read by upb for speed.

A Request carries its remaining budget, not a time: the clocks of two processes differ. Each process
measures by `time.monotonic()`.
"""

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self

from uuid_utils import uuid7

from shared.errors import ServiceError
from shared.metadata import NO_METADATA, Metadata
from shared.wire import message_class, parse_as

__all__ = ["Call", "budget_of", "read_request", "spend_budget", "with_budget"]

_Request: Any = message_class("postbus.bus.v1.Request")
_LONGEST_BUDGET: Final = 86_400.0
"""Seconds; a longer budget is sent as this one. 32 bits hold milliseconds of 49 days."""
_BUDGET_FIELD: Final = struct.Struct("<BI")
_BUDGET_TAG: Final = 10 << 3 | 5
"""Field 10, `budget_ms`, as fixed32."""


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
