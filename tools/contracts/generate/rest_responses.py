"""REST errors in the OpenAPI document: the responses that several operations share."""

from typing import Any, Final

from tools.contracts.generate.json_values import Schema

__all__ = ["HEADERS", "PROBLEM", "PROBLEM_REFERENCE", "RESPONSES", "failures"]

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
        "reason": {"type": "string", "description": "Stable cause, such as `USERNAME_TAKEN`."},
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


RESPONSES: Final[dict[str, Schema]] = {
    "Failure": _response("The request failed.", "Retry-After"),
    "Malformed": _response(
        "The URL, a header or the body is malformed, or the method takes no body."
    ),
    "Unauthenticated": _response("The access token is missing or invalid.", "WWW-Authenticate"),
    "NotAcceptable": _response("`Accept` excludes the media type of the response."),
    "BodyTooSlow": _response("The body did not arrive in time; the connection is closed."),
    "Repeated": _response(
        "The request conflicts with the current state. `OPERATION_RUNNING`: the operation with this"
        " `Idempotency-Key` is still running; repeat the request after `Retry-After`."
        " `ALREADY_DONE`: the operation was executed, and its response, which holds secrets, was"
        " not stored.",
        "Retry-After",
    ),
    "BodyTooLarge": _response(
        "The body is larger than the limit of the gateway, by default 2 MiB."
    ),
    "UnsupportedMedia": _response(
        "The media type or the content coding of the body is not supported.",
        "Accept",
        "Accept-Patch",
        "Accept-Encoding",
    ),
    "Invalid": _response(
        "Fields break rules: see `violations`. `OPERATION_ID_REUSED`: the `Idempotency-Key` was"
        " used for a different request."
    ),
    "TooManyRequests": _response(
        "Too many requests from this address or user, or the service is overloaded.",
        "Retry-After",
        "RateLimit",
        "RateLimit-Policy",
    ),
    "Unavailable": _response("A service or the message broker is unavailable.", "Retry-After"),
    "TooLate": _response("The deadline passed without a response."),
}


def failures(*, content: bool, body: bool, changes: bool) -> dict[str, Any]:
    """Return the error responses of an operation by status, as references to RESPONSES.

    `content`: the response has a body. `body`: the request may have one. `changes`: the method is
    not safe.
    """
    names = {
        "400": "Malformed",
        "401": "Unauthenticated",
        **({"406": "NotAcceptable"} if content else {}),
        **({"408": "BodyTooSlow"} if body else {}),
        **({"409": "Repeated"} if changes else {}),
        **({"413": "BodyTooLarge", "415": "UnsupportedMedia"} if body else {}),
        "422": "Invalid",
        "429": "TooManyRequests",
        "503": "Unavailable",
        "504": "TooLate",
        "default": "Failure",
    }
    return {status: {"$ref": f"#/components/responses/{name}"} for status, name in names.items()}
