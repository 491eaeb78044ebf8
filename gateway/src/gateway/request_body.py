"""The body of a request: whether it is read, and its size. `gateway.http1` keeps its deadline."""

from collections.abc import Sequence

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from gateway.media_types import JSON, has_content, require_media_type, require_uncoded
from gateway.problems import HttpError
from gateway.request_headers import Headers
from postbus import reasons
from shared.errors import Outcome

__all__ = ["default_body", "read_body", "too_large"]


def default_body(
    headers: Headers, supported: Sequence[str] | None, *, patch: bool = False
) -> tuple[bytes | None, str]:
    """Return the body to use for a request without one, None if it has a body; and its media type.

    `supported` are the media types of the method, empty if it takes no body, None if it takes any.
    Raises 400 for a body that the method does not take, 415 for another media type. A body of JSON
    may be absent: all its members are unset, and the rules decide whether one is required.
    """
    if supported is None:
        require_uncoded(headers)
        media_type = headers.get(b"content-type", b"").decode("latin-1")
        return None if has_content(headers) else b"", media_type
    if not supported:
        if has_content(headers):
            raise HttpError(reasons.BODY_UNEXPECTED, "The method takes no request body.")
        return b"", ""
    if b"content-type" not in headers and not has_content(headers):
        return b"{}", JSON
    return None, require_media_type(headers, supported, patch=patch)


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
