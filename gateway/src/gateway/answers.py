"""The answer of a method over REST, with the headers that tell of it."""

from starlette.responses import Response

from gateway.conditional import Conditions, entity_tag, is_safe, version_in
from gateway.transcoding import Transcoder
from postbus.registry import Method

__all__ = ["cache_control", "success"]


def cache_control(method: Method) -> str:
    """Return whether a successful answer may be kept: asked for before each use, or not at all."""
    return "no-store" if method.secret_response else "no-cache"


def success(
    transcoder: Transcoder, payload: bytes, conditions: Conditions, *, replayed: bool
) -> Response:
    """Return the response to a call that succeeded: 304 where the client has it already.

    `replayed` tells whether it is the stored answer of an operation that was done before. Raises
    412 where a condition does not hold.
    """
    method, status = transcoder.method, transcoder.rule.status
    headers = {"Idempotency-Replayed": "true"} if replayed else {}
    message = transcoder.response(payload)
    content = transcoder.write(message)
    if not content:
        return Response(status_code=204, headers=headers)
    if status in (200, 201) and (method.version or is_safe(method)):
        version = version_in(method, message)
        conditions.require(version)
        headers["ETag"] = etag = entity_tag(content, version)
        if conditions.know(etag):
            return Response(status_code=304, headers=headers)
    return Response(content, status, headers, media_type="application/json")
