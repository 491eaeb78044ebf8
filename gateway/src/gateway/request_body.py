"""The body of a request: whether it is read, and its size. `gateway.http1` keeps its deadline."""

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from gateway.media_types import has_content, require_json, require_uncoded
from gateway.problems import HttpError
from gateway.request_headers import Headers
from postbus import reasons
from postbus.registry import HttpRule
from shared.errors import Outcome

__all__ = ["default_body", "read_body", "too_large"]


def default_body(rule: HttpRule, headers: Headers, *, raw: bool = False) -> bytes | None:
    """Return the body to use for a request without one (`{}` or nothing); None if it has a body.

    Raises 400 if the method takes no body but the request has one, 415 if the body is not JSON. A
    `raw` body may have any media type.
    """
    if not rule.body:
        if has_content(headers):
            raise HttpError(reasons.BODY_UNEXPECTED, "The method takes no request body.")
        return b""
    if raw:
        require_uncoded(headers)
        return None if has_content(headers) else b""
    if b"content-type" not in headers and not has_content(headers):
        return b"{}"  # all members are unset; the rules decide whether one is required
    require_json(headers, patch=rule.verb == "PATCH")
    return None


async def read_body(receive: Receive, max_bytes: int) -> bytes:
    """Return the whole body; 413 if it is too large (with `gateway.http1` the protocol refuses it).

    Raises ClientDisconnect if the client disconnects before the end of the body.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientDisconnect
        part: bytes = event.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise too_large(max_bytes)
        if not event.get("more_body", False):
            return b"".join((*parts, part)) if parts else part
        parts.append(part)


def too_large(max_bytes: int, outcome: int = Outcome.NO_EFFECT) -> HttpError:
    """Return the error of a body of more than `max_bytes`: 413."""
    message = f"The body is larger than {max_bytes} bytes."
    return HttpError(reasons.BODY_TOO_LARGE, message, outcome=outcome)
