"""Parse the headers of a request: access token, timeout and idempotency key."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from gateway.problems import HttpError
from gateway.response_headers import Header
from postbus import reasons
from postbus.registry import Method
from shared.errors import ServiceError

__all__ = ["MAX_TIMEOUT", "Headers", "bearer_token", "headers_of", "operation_id", "timeout"]

Headers = Mapping[bytes, bytes]
"""The headers of a request by name, in lower case."""

MAX_TIMEOUT: Final = 30.0
"""Longest time that a client can request for a call, in seconds."""
_OPERATION_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_SECONDS: Final = re.compile(rb"[0-9]{1,3}(\.[0-9]{1,20})?")
_MIN_TIMEOUT: Final = 0.001
"""Shortest time that a client can request for a call, in seconds."""


def headers_of(lines: Sequence[Header]) -> Headers:
    """Return the headers of a request; lines with the same name are combined.

    RFC 9110, section 5.3: values are joined by commas. A header with a single value, such as
    Idempotency-Key, becomes malformed if it occurs twice.
    """
    headers = dict(lines)
    if len(headers) == len(lines):
        return headers
    headers.clear()
    for name, value in lines:
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def bearer_token(headers: Headers) -> str:
    """Return the access token, empty if there is none; UNAUTHENTICATED if it is malformed."""
    value = headers.get(b"authorization")
    if not value:
        return ""
    scheme, _, token = value.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token:
        raise ServiceError(reasons.TOKEN_INVALID, "Send the access token as `Bearer <token>`.")
    return token.decode("latin-1")


def timeout(headers: Headers, method: Method) -> float:
    """Return Request-Timeout in seconds, or the timeout of the method; 400 if it is invalid."""
    if b"request-timeout" not in headers:
        return method.timeout
    value = headers[b"request-timeout"]
    if not _SECONDS.fullmatch(value) or not _MIN_TIMEOUT <= float(value) <= MAX_TIMEOUT:
        raise HttpError(
            reasons.REQUEST_TIMEOUT_INVALID,
            f"Request-Timeout takes seconds, from {_MIN_TIMEOUT} to {MAX_TIMEOUT:.0f}.",
        )
    return float(value)


def operation_id(headers: Headers) -> str:
    """Return the Idempotency-Key, empty if there is none; 400 if it is malformed."""
    if b"idempotency-key" not in headers:
        return ""
    value = headers[b"idempotency-key"]
    if not _OPERATION_ID.fullmatch(value):
        raise HttpError(
            reasons.IDEMPOTENCY_KEY_INVALID,
            "Idempotency-Key takes 1 to 128 visible ASCII characters.",
        )
    return value.decode("ascii")
