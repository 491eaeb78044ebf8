"""Errors of the Connect protocol (connectrpc.com/docs/protocol, Error Codes, Unary Error)."""

from base64 import b64encode
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, Final

import orjson
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

from gateway.problems import error_headers
from gateway.response_headers import JSON, NO_STORE, SECURITY, Header
from gateway.responses import HttpResponse
from postbus_runtime.reasons import Reason
from shared.errors import Code, ServiceError

__all__ = ["error_document", "error_response", "protocol_error"]

_DOMAIN: Final = "postbus"
"""`domain` of each ErrorInfo (AIP-193)."""
_UNKNOWN: Final = ("unknown", 500)
_NAME_AND_STATUS: Final = MappingProxyType(
    {
        Code.CANCELLED: ("canceled", 499),
        Code.UNKNOWN: _UNKNOWN,
        Code.INVALID_ARGUMENT: ("invalid_argument", 400),
        Code.DEADLINE_EXCEEDED: ("deadline_exceeded", 504),
        Code.NOT_FOUND: ("not_found", 404),
        Code.ALREADY_EXISTS: ("already_exists", 409),
        Code.PERMISSION_DENIED: ("permission_denied", 403),
        Code.RESOURCE_EXHAUSTED: ("resource_exhausted", 429),
        Code.FAILED_PRECONDITION: ("failed_precondition", 400),
        Code.ABORTED: ("aborted", 409),
        Code.OUT_OF_RANGE: ("out_of_range", 400),
        Code.UNIMPLEMENTED: ("unimplemented", 501),
        Code.INTERNAL: ("internal", 500),
        Code.UNAVAILABLE: ("unavailable", 503),
        Code.DATA_LOSS: ("data_loss", 500),
        Code.UNAUTHENTICATED: ("unauthenticated", 401),
    }
)
"""The name of each code, and the HTTP status of a unary error with it."""


def protocol_error(code: int, message: str) -> ServiceError:
    """Return the error of a request that the Connect protocol does not allow; it has no reason."""
    return ServiceError(Reason("", code), message)


def error_response(error: ServiceError, trace_id: str, headers: list[Header]) -> HttpResponse:
    """Return the response to a failed unary call, with further header fields."""
    content = orjson.dumps(error_document(error, trace_id))
    _, status = _NAME_AND_STATUS.get(error.code, _UNKNOWN)
    fields = [
        JSON,
        (b"content-length", b"%d" % len(content)),
        (b"trace-id", trace_id.encode()),
        NO_STORE,
        *SECURITY,
        *error_headers(error, status),
        *headers,
    ]
    return HttpResponse(status, fields, content)


def error_document(error: ServiceError, trace_id: str) -> dict[str, Any]:
    """Return the JSON of an error: `code`, `message` and `details`."""
    name, _ = _NAME_AND_STATUS.get(error.code, _UNKNOWN)
    document: dict[str, Any] = {"code": name}
    if error.message:
        document["message"] = error.message
    details = [_encoded(each.type, each.value) for each in error.details]
    details += [_detail(each) for each in _details(error, trace_id)]
    if details:
        document["details"] = details
    return document


def _detail(message: Message) -> dict[str, str]:
    return _encoded(message.DESCRIPTOR.full_name, message.SerializeToString())


def _encoded(name: str, value: bytes) -> dict[str, str]:
    return {"type": name, "value": b64encode(value).rstrip(b"=").decode()}


def _details(error: ServiceError, trace_id: str) -> Iterator[Message]:
    """Yield the details in the types of google.rpc that clients know (AIP-193).

    A reason that is only the name of the code, such as DEADLINE_EXCEEDED, adds nothing to it.
    """
    if error.reason not in ("", error.code.name):
        metadata = {"outcome": error.outcome.name or "", "traceId": error.trace_id or trace_id}
        if error.more_violations:
            metadata["moreViolations"] = "true"
        yield ErrorInfo(reason=error.reason, domain=_DOMAIN, metadata=metadata)
    if error.violations:
        yield BadRequest(field_violations=map(_violation, error.violations))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after * 1e9))
        yield RetryInfo(retry_delay=delay)


def _violation(violation: Any) -> BadRequest.FieldViolation:
    """Return a violation; its reason is the rule in UPPER_SNAKE_CASE: `STRING_MIN_LEN`."""
    return BadRequest.FieldViolation(
        field=violation.field,
        description=violation.message,
        reason=violation.rule.replace(".", "_").upper(),
    )
