"""The body of a request, read within bounds of size and time."""

import asyncio
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from gateway.problems import HttpError
from gateway.request_headers import Fields
from shared.errors import Code

__all__ = ["BODY_SECONDS", "read_body"]

BODY_SECONDS: Final = 30.0
"""Time for a body to arrive."""


async def read_body(receive: Receive, fields: Fields, max_bytes: int) -> bytes:
    """Return the whole body; 413 if it is too large, 408 if it takes too long.

    Raises ClientDisconnect if the client leaves before its end.
    """
    if _announced(fields) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(receive, max_bytes)
    except TimeoutError:
        raise HttpError(
            408,
            Code.INVALID_ARGUMENT,
            "BODY_TOO_SLOW",
            f"The body has not come within {BODY_SECONDS:.0f} seconds.",
        ) from None


def _announced(fields: Fields) -> int:
    length = fields.get(b"content-length", b"0")
    return int(length[:20]) if length.isdigit() else 0


async def _read(receive: Receive, max_bytes: int) -> bytes:
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


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(
        413,
        Code.INVALID_ARGUMENT,
        "BODY_TOO_LARGE",
        f"The body is larger than {max_bytes} bytes.",
    )
