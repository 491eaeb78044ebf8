"""Bodies of any media type: google.api.HttpBody (google/api/httpbody.proto)."""

import re
from typing import Any, Final

from gateway.parameters import field_named
from gateway.response_headers import Header
from postbus.registry import HttpRule, Method
from shared.wire import message_class

__all__ = ["RAW_POLICY", "media_type_header", "request_field", "response_field"]

_HTTP_BODY: Final = "google.api.HttpBody"
_NAME: Final = r"[A-Za-z0-9!#$&^_.+-]{1,127}"  # RFC 6838, section 4.2
_MEDIA_TYPE: Final = re.compile(rf"{_NAME}/{_NAME}(?: ?;[ -~]{{0,200}})?")
_UNKNOWN_TYPE: Final = "application/octet-stream"
RAW_POLICY: Final[Header] = (b"content-security-policy", b"default-src 'none'; sandbox")
"""Keeps a page that a worker returns from running in the origin of the API."""


def request_field(method: Method, rule: HttpRule) -> str | None:
    """Return the proto name of the field that takes the raw body of a request.

    "" if the request itself is an HttpBody; None if the body is JSON.
    """
    return _field_of(method.request_name, rule.body) if rule.body else None


def response_field(method: Method, rule: HttpRule) -> str | None:
    """Return the proto name of the field with the raw body of a response.

    "" if the response itself is an HttpBody; None if the body is JSON. A stream is lines of JSON.
    """
    return None if method.streams else _field_of(method.response_name, rule.response_body)


def _field_of(message_name: str, body: str) -> str | None:
    kind: Any = message_class(message_name).DESCRIPTOR
    if body in ("", "*"):
        return "" if message_name == _HTTP_BODY else None
    field = field_named(kind, body)
    if field is None or field.message_type is None or field.is_repeated:
        return None
    return field.name if field.message_type.full_name == _HTTP_BODY else None


def media_type_header(media_type: str) -> Header:
    """Return Content-Type of a raw response; a malformed type becomes application/octet-stream."""
    valid = _MEDIA_TYPE.fullmatch(media_type)
    return (b"content-type", (media_type if valid else _UNKNOWN_TYPE).encode("ascii"))
