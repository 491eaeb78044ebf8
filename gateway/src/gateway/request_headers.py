"""What the headers of a REST request say of its call."""

import re
from typing import Final

from starlette.datastructures import Headers

from gateway.calls import MAX_TIMEOUT
from gateway.problems import HttpError
from postbus.registry import Method
from shared.errors import Code, ServiceError

__all__ = ["bearer_token", "operation_id", "timeout"]

_OPERATION_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_SECONDS: Final = re.compile(r"\d{1,3}(\.\d{1,20})?")
_MIN_TIMEOUT: Final = 0.001


def bearer_token(headers: Headers) -> str:
    """Return the access token, empty if there is none; UNAUTHENTICATED if it is sent otherwise."""
    value = headers.get("authorization", "")
    scheme, _, token = value.partition(" ")
    if value and (scheme.lower() != "bearer" or not token.strip()):
        raise ServiceError(
            Code.UNAUTHENTICATED, "TOKEN_INVALID", "Send the access token as `Bearer <token>`."
        )
    return token.strip()


def timeout(headers: Headers, method: Method) -> float:
    """Return the seconds that the client gives the call, or else the method's own; 400 if bad."""
    value = headers.get("request-timeout")
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


def operation_id(headers: Headers) -> str:
    """Return the Idempotency-Key, empty if there is none; 400 if it is not one."""
    value = headers.get("idempotency-key")
    if value is None:
        return ""
    if not _OPERATION_ID.fullmatch(value):
        raise HttpError(
            400,
            Code.INVALID_ARGUMENT,
            "IDEMPOTENCY_KEY_INVALID",
            "Idempotency-Key takes 1 to 128 visible ASCII characters.",
        )
    return value
