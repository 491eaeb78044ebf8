"""The body of a request, read up to a size. Its deadline is kept by `gateway.http1`."""

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from gateway.problems import HttpError
from gateway.request_headers import Fields
from shared.errors import Code

__all__ = ["read_body"]


async def read_body(receive: Receive, fields: Fields, max_bytes: int) -> bytes:
    """Return the whole body; 413 if it is too large.

    Raises ClientDisconnect if the client leaves before its end.
    """
    if _announced(fields) > max_bytes:
        raise _too_large(max_bytes)
    event = await receive()
    if event["type"] == "http.request" and not event.get("more_body", False):
        body: bytes = event.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        return body
    parts, size = [], 0
    while True:
        if event["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(event.get("body", b""))
        size += len(parts[-1])
        if size > max_bytes:
            raise _too_large(max_bytes)
        if not event.get("more_body", False):
            return b"".join(parts)
        event = await receive()


def _announced(fields: Fields) -> int:
    length = fields.get(b"content-length", b"0")
    return int(length[:20]) if length.isdigit() else 0


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(
        413,
        Code.INVALID_ARGUMENT,
        "BODY_TOO_LARGE",
        f"The body is larger than {max_bytes} bytes.",
    )
