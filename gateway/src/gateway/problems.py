"""Map errors to HTTP problem details (RFC 9457) and WebSocket close codes."""

import math
from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

import orjson

from gateway.response_headers import NO_STORE, PROBLEM, SECURITY, Header
from gateway.responses import HttpResponse
from postbus.reasons import REASONS
from shared.errors import Code, Outcome, ServiceError

__all__ = ["CLOSE_CODES", "HttpError", "error_headers", "problem"]

_INTERNAL: Final = (500, 1011)
"""HTTP status and close code of all codes that the table below does not list."""
_CHALLENGE: Final = b'Bearer realm="postbus"'
_BAD_TOKEN: Final = _CHALLENGE + b', error="invalid_token"'
_TOKEN_ERRORS: Final = frozenset({"SESSION_REVOKED", "TOKEN_EXPIRED", "TOKEN_INVALID"})
"""Reasons of an invalid token, unlike a missing one (RFC 6750, section 3.1)."""
_STATUS_AND_CLOSE_CODE: Final = MappingProxyType(
    {
        Code.CANCELLED: (499, 4499),
        Code.INVALID_ARGUMENT: (422, 4422),
        Code.DEADLINE_EXCEEDED: (504, 4504),
        Code.NOT_FOUND: (404, 4404),
        Code.ALREADY_EXISTS: (409, 4409),
        Code.PERMISSION_DENIED: (403, 4403),
        Code.RESOURCE_EXHAUSTED: (429, 4429),
        Code.FAILED_PRECONDITION: (412, 4412),
        Code.ABORTED: (409, 4409),
        Code.OUT_OF_RANGE: (422, 4422),
        Code.UNIMPLEMENTED: (501, 4501),
        Code.UNAVAILABLE: (503, 1013),
        Code.UNAUTHENTICATED: (401, 4401),
    }
)
CLOSE_CODES: Final = MappingProxyType(
    {code: _STATUS_AND_CLOSE_CODE.get(code, _INTERNAL)[1] for code in Code}
)
"""Close codes of the WebSocket for an error that ends the connection (RFC 6455, section 7.4)."""


class HttpError(ServiceError):
    """An error of the HTTP layer, with a status that is not derived from its code.

    With the outcome NO_EFFECT, raise it only before the method is called.
    """

    def __init__(
        self,
        status: int,
        code: int,
        reason: str,
        message: str,
        *,
        headers: dict[str, str] | None = None,
        outcome: int = Outcome.NO_EFFECT,
    ) -> None:
        super().__init__(code, reason, message, outcome=Outcome.try_value(outcome))
        self.status = status
        self.headers = headers or {}


def _status(error: ServiceError) -> int:
    if isinstance(error, HttpError):
        return error.status
    return _STATUS_AND_CLOSE_CODE.get(error.code, _INTERNAL)[0]


def problem(error: ServiceError, trace_id: str) -> HttpResponse:
    """Return the response that describes an error."""
    status = _status(error)
    body = {
        "type": f"/problems/{error.reason}" if error.reason in REASONS else "about:blank",
        "title": error.reason.replace("_", " ").capitalize(),
        "status": status,
        "detail": error.message,
        "code": error.code.name,
        "reason": error.reason,
        "outcome": error.outcome.name,
        "violations": [
            {"field": each.field, "rule": each.rule, "message": each.message}
            for each in error.violations
        ],
        "moreViolations": error.more_violations,
        "traceId": error.trace_id or trace_id,
    }
    content = orjson.dumps(body)
    headers = [
        PROBLEM,
        (b"content-length", b"%d" % len(content)),
        (b"trace-id", trace_id.encode()),
        NO_STORE,
        *SECURITY,
        *error_headers(error, status),
    ]
    return HttpResponse(status, headers, content)


def error_headers(error: ServiceError, status: int) -> Iterator[Header]:
    """Yield the header fields of an error: challenge, delay, and its own fields."""
    if isinstance(error, HttpError):
        yield from ((name.lower().encode(), each.encode()) for name, each in error.headers.items())
    if status == 401:  # RFC 9110, section 11.6.1
        yield (b"www-authenticate", _BAD_TOKEN if error.reason in _TOKEN_ERRORS else _CHALLENGE)
    if error.retry_after is not None:
        yield (b"retry-after", b"%d" % math.ceil(error.retry_after))
