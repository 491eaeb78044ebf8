"""The body of a request, read up to a size. Its deadline is kept by `gateway.http1`."""

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from gateway.problems import HttpError
from shared.errors import Code, Outcome

__all__ = ["read_body", "too_large"]


async def read_body(receive: Receive, max_bytes: int) -> bytes:
    """Return the whole body; 413 if it is too large, which `gateway.http1` finds before.

    Raises ClientDisconnect if the client leaves before its end.
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
    error = HttpError(413, Code.INVALID_ARGUMENT, "BODY_TOO_LARGE", message)
    error.outcome = Outcome.try_value(outcome)
    return error
