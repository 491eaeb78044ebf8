"""Failures of REST in the OpenAPI document: the statuses that several operations share."""

from typing import Any, Final

from tools.contracts.generate.json_values import Schema

__all__ = ["HEADERS", "RESPONSES", "failures"]

_PROBLEM: Final = {
    "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}},
}
HEADERS: Final[dict[str, Schema]] = {
    "TraceId": {
        "description": "Finds the request in logs: 32 hex digits.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    "RetryAfter": {
        "description": "Seconds to wait before the next try.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "RateLimit": {
        "description": "What is left of the limit that is nearest to its end: `r` requests, and"
        " `t` seconds until it is whole again (draft-ietf-httpapi-ratelimit-headers).",
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
        "content": _PROBLEM,
    }


RESPONSES: Final[dict[str, Schema]] = {
    "Failure": _response("It failed.", "Retry-After"),
    "Malformed": _response(
        "The URL, a header or the body is malformed, or a body was sent where none is taken."
    ),
    "Unauthenticated": _response("There is no valid access token.", "WWW-Authenticate"),
    "NotAcceptable": _response("`Accept` excludes the media type of the answer."),
    "BodyTooSlow": _response("The body has not come in time; the connection is closed."),
    "Repeated": _response(
        "It conflicts with what is there. `OPERATION_RUNNING`: the request with this"
        " `Idempotency-Key` is being served, ask again after `Retry-After`. `ALREADY_DONE`: it was"
        " served before, and its answer, which holds secrets, was not kept.",
        "Retry-After",
    ),
    "BodyTooLarge": _response(
        "The body is larger than the gateway takes: 2 MiB unless it is set otherwise."
    ),
    "UnsupportedMedia": _response(
        "The body has another media type, or a content coding.",
        "Accept",
        "Accept-Patch",
        "Accept-Encoding",
    ),
    "Invalid": _response(
        "Fields break rules: `violations` names them. `OPERATION_ID_REUSED`: the `Idempotency-Key`"
        " belongs to another request."
    ),
    "TooManyRequests": _response(
        "Too many requests of this address or user, or the service is full.",
        "Retry-After",
        "RateLimit",
        "RateLimit-Policy",
    ),
    "Unavailable": _response("A service or the message broker is unavailable.", "Retry-After"),
    "TooLate": _response("There was no answer in time."),
}


def failures(*, content: bool, body: bool, changes: bool) -> dict[str, Any]:
    """Return the failures of an operation by status, as references to RESPONSES.

    `content`: its answer has a body. `body`: its request may have one. `changes`: it is not safe.
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
