"""Map errors to HTTP problem details (RFC 9457) and WebSocket close codes."""

import math
from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

import orjson

from gateway.response_headers import NO_STORE, PROBLEM, SECURITY, Header
from gateway.responses import HttpResponse
from postbus import reasons
from postbus.reasons import REASONS
from postbus_runtime.reasons import HTTP_STATUSES, Reason
from shared.errors import Code, Outcome, ServiceError

__all__ = ["CLOSE_CODES", "HttpError", "error_headers", "problem"]

_CHALLENGE: Final = b'Bearer realm="postbus"'
_BAD_TOKEN: Final = _CHALLENGE + b', error="invalid_token"'
_TOKEN_ERRORS: Final = frozenset(
    {reasons.SESSION_REVOKED, reasons.TOKEN_EXPIRED, reasons.TOKEN_INVALID}
)
"""Reasons of an invalid token, unlike a missing one (RFC 6750, section 3.1)."""


def _close_code(status: int) -> int:
    """Return the close code for an HTTP status: 4000 + status, unless the RFC has one."""
    return {500: 1011, 503: 1013}.get(status, 4000 + status)


CLOSE_CODES: Final = MappingProxyType(
    {code: _close_code(HTTP_STATUSES.get(code, 500)) for code in Code}
)
"""Close codes of the WebSocket for an error that ends the connection (RFC 6455, section 7.4)."""


class HttpError(ServiceError):
    """An error of the HTTP layer, with header fields.

    With the outcome NO_EFFECT, raise it only before the method is called.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        headers: dict[str, str] | None = None,
        outcome: int = Outcome.NO_EFFECT,
    ) -> None:
        super().__init__(reason, message, outcome=outcome)
        self.headers = headers or {}


def problem(error: ServiceError, trace_id: str) -> HttpResponse:
    """Return the response that describes an error, with the status of its reason."""
    status = error.reason.http_status
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
