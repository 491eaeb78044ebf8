"""How failures look from outside: problem details (RFC 9457), and close codes of the WebSocket."""

import math
from types import MappingProxyType
from typing import Final

import orjson
from starlette.responses import Response

from shared.errors import Code, ServiceError

__all__ = ["CLOSE_CODES", "HttpError", "problem"]

_INTERNAL: Final = (500, 1011)
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
    {code: close for code, (_, close) in _STATUS_AND_CLOSE_CODE.items()}
)
"""With what the WebSocket closes where an error ends the connection (RFC 6455, section 7.4)."""


class HttpError(ServiceError):
    """A failure of HTTP itself, with a status that no code stands for."""

    def __init__(
        self,
        status: int,
        code: int,
        reason: str,
        message: str,
        *,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(code, reason, message)
        self.status = status
        self.headers = headers or {}


def _status(error: ServiceError) -> int:
    if isinstance(error, HttpError):
        return error.status
    return _STATUS_AND_CLOSE_CODE.get(error.code, _INTERNAL)[0]


def problem(error: ServiceError, trace_id: str) -> Response:
    """Return the response that tells of an error."""
    status = _status(error)
    body = {
        "type": "about:blank",
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
    return Response(
        orjson.dumps(body),
        status_code=status,
        media_type="application/problem+json",
        headers=_headers(error, status),
    )


def _headers(error: ServiceError, status: int) -> dict[str, str]:
    headers = {"Cache-Control": "no-store"}
    if isinstance(error, HttpError):
        headers |= error.headers
    if status == 401:  # RFC 9110, section 11.6.1
        headers["WWW-Authenticate"] = 'Bearer realm="postbus"'
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    return headers
