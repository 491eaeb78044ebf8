"""REST errors in the OpenAPI document: the responses that several operations share."""

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

from postbus_runtime.reasons import Reason, Scope
from tools.contracts.generate.json_values import Schema

__all__ = ["HEADERS", "PROBLEM", "PROBLEM_REFERENCE", "ErrorResponses"]

PROBLEM: Final[Schema] = {
    "type": "object",
    "description": "Why a request failed (RFC 9457).",
    "properties": {
        "type": {
            "type": "string",
            "format": "uri-reference",
            "description": "The path of a page about the reason, at the gateway; `about:blank` if"
            " there is none.",
        },
        "title": {"type": "string", "description": "The reason, as text."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {
            "type": "string",
            "description": "The error as text. May change: do not parse it.",
        },
        "code": {"type": "string", "description": "Canonical code, such as `NOT_FOUND`."},
        "reason": {
            "type": "string",
            "description": "Stable cause, such as `USERNAME_TAKEN`; the responses of an operation"
            " list them. Treat an unknown reason by its `code`.",
        },
        "outcome": {
            "enum": ["NO_EFFECT", "UNKNOWN"],
            "description": "Whether the failed request may have had an effect.",
        },
        "violations": {
            "type": "array",
            "description": "The rules that the request breaks, at most 20.",
            "maxItems": 20,
            "items": {
                "type": "object",
                "properties": {
                    "field": {"type": "string", "description": "Its path, such as `tags[2]`."},
                    "rule": {"type": "string", "description": "Stable, such as `string.min_len`."},
                    "message": {"type": "string", "description": "The error as text."},
                },
                "required": ["field", "rule", "message"],
            },
        },
        "moreViolations": {
            "type": "boolean",
            "description": "Whether there may be more violations.",
        },
        "traceId": {"type": "string", "description": "Identifies the request in logs."},
    },
    "required": [
        "type",
        "title",
        "status",
        "detail",
        "code",
        "reason",
        "outcome",
        "violations",
        "moreViolations",
        "traceId",
    ],
}
PROBLEM_REFERENCE: Final = {"$ref": "#/components/schemas/Problem"}
_CONTENT: Final = {"application/problem+json": {"schema": PROBLEM_REFERENCE}}
HEADERS: Final[dict[str, Schema]] = {
    "TraceId": {
        "description": "Identifies the request in logs: 32 hex digits.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    "RetryAfter": {
        "description": "Seconds to wait before a retry.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "RateLimit": {
        "description": "The limit that is closest to exhaustion: `r` requests remain, and it is"
        " reset in `t` seconds (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string"},
    },
    "RateLimitPolicy": {
        "description": "The limits of this method: `q` requests in `w` seconds"
        " (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string"},
    },
    "Accept": {
        "description": "Media types that the body may have (RFC 9110, section 15.5.16).",
        "schema": {"type": "string"},
    },
    "AcceptPatch": {
        "description": "Media types that the body of a PATCH may have (RFC 5789, section 3.1).",
        "schema": {"type": "string"},
    },
    "AcceptEncoding": {
        "description": "Content codings that the body may have (RFC 9110, section 12.5.3).",
        "schema": {"type": "string"},
    },
    "WWWAuthenticate": {
        "description": 'With `error="invalid_token"` if a token was sent and is not valid'
        " (RFC 6750, section 3).",
        "schema": {"type": "string"},
    },
}


def _response(description: str, *headers: str) -> Schema:
    names = {"Trace-Id": "TraceId"} | {name: name.replace("-", "") for name in headers}
    return {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{key}"} for name, key in names.items()},
        "content": _CONTENT,
    }


_SHARED: Final[dict[str, Schema]] = {
    "400": _response("The URL, a header or the body is malformed, or the method takes no body."),
    "401": _response("The access token is missing or invalid.", "WWW-Authenticate"),
    "406": _response("`Accept` excludes the media type of the response."),
    "408": _response("The body did not arrive in time; the connection is closed."),
    "409": _response("The request conflicts with the current state.", "Retry-After"),
    "412": _response(
        "The version is not current, the resource exists, or another precondition is not met.",
        "Retry-After",
    ),
    "413": _response("The body is larger than the limit of the gateway, by default 2 MiB."),
    "415": _response(
        "The media type or the content coding of the body is not supported.",
        "Accept",
        "Accept-Patch",
        "Accept-Encoding",
    ),
    "422": _response("Fields break rules: see `violations`."),
    "429": _response(
        "Too many requests from this address or user, or the service is overloaded.",
        "Retry-After",
        "RateLimit",
        "RateLimit-Policy",
    ),
    "503": _response("A service or the message broker is unavailable.", "Retry-After"),
    "504": _response("The deadline passed without a response."),
    "default": _response("The request failed.", "Retry-After"),
}
"""The responses of several operations, without their reasons."""
_NAMES: Final = {
    "400": "Malformed",
    "401": "Unauthenticated",
    "406": "NotAcceptable",
    "408": "BodyTooSlow",
    "409": "Repeated",
    "412": "PreconditionFailed",
    "413": "BodyTooLarge",
    "415": "UnsupportedMedia",
    "422": "Invalid",
    "429": "TooManyRequests",
    "503": "Unavailable",
    "504": "TooLate",
    "default": "Failure",
}
"""The names of these responses, by status."""


class ErrorResponses:
    """The error responses of operations, with the reasons that occur."""

    def __init__(self, reasons: Mapping[str, Reason]) -> None:
        self._reasons = reasons
        self._common: dict[str, list[Reason]] = {status: [] for status in _SHARED}
        for reason in reasons.values():
            status = str(reason.http_status)
            if status in _SHARED and reason.scope in (Scope.CALL, Scope.HTTP):
                self._common[status].append(reason)
            elif reason.scope is Scope.CALL:
                self._common["default"].append(reason)

    def shared(self) -> dict[str, Schema]:
        """Return the responses that several operations share, by name."""
        return {
            name: _with_reasons(_SHARED[status], self._common[status])
            for status, name in _NAMES.items()
        }

    def of_operation(self, statuses: Iterable[str], names: Iterable[str]) -> dict[str, Schema]:
        """Return the responses with these shared statuses, and the responses of a method's reasons.

        A response with a reason of the method is not a reference to the shared one. Names that the
        contracts do not have are left out.
        """
        responses = {status: _reference(_NAMES[status]) for status in (*statuses, "default")}
        own: dict[str, list[Reason]] = {}
        for reason in filter(None, map(self._reasons.get, names)):
            own.setdefault(str(reason.http_status), []).append(reason)
        for status, reasons in own.items():
            known = _SHARED.get(status) or _response(HTTPStatus(int(status)).phrase + ".")
            common = self._common[status] if status in responses else []
            responses[status] = _with_reasons(known, [*reasons, *common])
        return responses


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/responses/{name}"}


def _with_reasons(response: Schema, reasons: Sequence[Reason]) -> Schema:
    """Return a response with the reasons that it may have, in its description and as a list."""
    listed = "\n".join(f"- `{each}`: {each.meaning}" for each in reasons)
    if not listed:
        return response
    description = f"{response['description']}\n\n{listed}"
    return response | {"description": description, "x-reasons": [str(each) for each in reasons]}
