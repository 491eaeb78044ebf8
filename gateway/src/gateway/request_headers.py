"""Parse the header fields of a request: access token, timeout and idempotency key."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from gateway.problems import HttpError
from gateway.response_headers import Header
from postbus.registry import Method
from shared.errors import Code, ServiceError

__all__ = ["MAX_TIMEOUT", "Fields", "bearer_token", "fields_of", "operation_id", "timeout"]

Fields = Mapping[bytes, bytes]
"""Header fields by name, in lower case."""

MAX_TIMEOUT: Final = 30.0
"""Longest time that a client can request for a call, in seconds."""
_OPERATION_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_SECONDS: Final = re.compile(rb"[0-9]{1,3}(\.[0-9]{1,20})?")
_MIN_TIMEOUT: Final = 0.001
"""Shortest time that a client can request for a call, in seconds."""


def fields_of(headers: Sequence[Header]) -> Fields:
    """Return the header fields of a request; lines with the same name are combined.

    RFC 9110, section 5.3: values are joined by commas. A field with a single value, such as
    Idempotency-Key, becomes malformed if it occurs twice.
    """
    fields = dict(headers)
    if len(fields) == len(headers):
        return fields
    fields.clear()
    for name, value in headers:
        fields[name] = fields[name] + b", " + value if name in fields else value
    return fields


def bearer_token(fields: Fields) -> str:
    """Return the access token, empty if there is none; UNAUTHENTICATED if it is malformed."""
    value = fields.get(b"authorization")
    if not value:
        return ""
    scheme, _, token = value.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token:
        raise ServiceError(
            Code.UNAUTHENTICATED, "TOKEN_INVALID", "Send the access token as `Bearer <token>`."
        )
    return token.decode("latin-1")


def timeout(fields: Fields, method: Method) -> float:
    """Return Request-Timeout in seconds, or the timeout of the method; 400 if it is invalid."""
    if b"request-timeout" not in fields:
        return method.timeout
    value = fields[b"request-timeout"]
    if not _SECONDS.fullmatch(value) or not _MIN_TIMEOUT <= float(value) <= MAX_TIMEOUT:
        raise HttpError(
            400,
            Code.INVALID_ARGUMENT,
            "REQUEST_TIMEOUT_INVALID",
            f"Request-Timeout takes seconds, from {_MIN_TIMEOUT} to {MAX_TIMEOUT:.0f}.",
        )
    return float(value)


def operation_id(fields: Fields) -> str:
    """Return the Idempotency-Key, empty if there is none; 400 if it is malformed."""
    if b"idempotency-key" not in fields:
        return ""
    value = fields[b"idempotency-key"]
    if not _OPERATION_ID.fullmatch(value):
        raise HttpError(
            400,
            Code.INVALID_ARGUMENT,
            "IDEMPOTENCY_KEY_INVALID",
            "Idempotency-Key takes 1 to 128 visible ASCII characters.",
        )
    return value.decode("ascii")
