"""The header fields of a REST request: token, deadline and idempotency key of its call."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from gateway.calls import MAX_TIMEOUT
from gateway.headers import Header
from gateway.problems import HttpError
from postbus.registry import Method
from shared.errors import Code, ServiceError

__all__ = ["Fields", "bearer_token", "fields_of", "operation_id", "timeout"]

Fields = Mapping[bytes, bytes]
"""Header fields by name, in lower case."""

_OPERATION_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_SECONDS: Final = re.compile(rb"[0-9]{1,3}(\.[0-9]{1,20})?")
_MIN_TIMEOUT: Final = 0.001
"""Shortest budget that a client may ask for, in seconds."""


def fields_of(headers: Sequence[Header]) -> Fields:
    """Return the header fields of a request; lines with the same name are combined.

    Combined as RFC 9110, section 5.3, describes it. A field that may occur only once, such as
    Idempotency-Key, is thereby malformed if it occurs twice.
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
    """Return the seconds that the client gives the call, or else the method's own; 400 if bad."""
    value = fields.get(b"request-timeout")
    if value is None:
        return method.timeout
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
    value = fields.get(b"idempotency-key")
    if value is None:
        return ""
    if not _OPERATION_ID.fullmatch(value):
        raise HttpError(
            400,
            Code.INVALID_ARGUMENT,
            "IDEMPOTENCY_KEY_INVALID",
            "Idempotency-Key takes 1 to 128 visible ASCII characters.",
        )
    return value.decode("ascii")
