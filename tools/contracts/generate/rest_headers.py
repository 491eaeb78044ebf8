"""REST headers in the OpenAPI document: idempotency keys and conditional requests."""

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor

from postbus_runtime.http_rules import Binding
from postbus_runtime.options import Idempotency
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.json_values import Schema
from tools.contracts.generate.rest_responses import ErrorResponses

__all__ = ["RestHeaders", "header_fields"]

_IDEMPOTENCY_KEY: Final = (
    "Identifies the operation: for 24 hours, a repeated request with the same key has no second"
    " effect{effect} Each caller and method has its own keys. The same key with another body is"
    " refused (422 `OPERATION_ID_REUSED`); without an access token it is another operation, so"
    " choose keys at random. While the first request is still running, a repeated request is 409"
    " `OPERATION_RUNNING`."
)
_STORED: Final = " and gets the stored response."
_NOT_STORED: Final = (
    ". Its response has secrets and is not stored: a repeated request is 409 `ALREADY_DONE`, unless"
    " the description of the operation says otherwise."
)
_IF_MATCH: Final = {
    "name": "If-Match",
    "in": "header",
    "description": 'An ETag, or only its version as `"<version>"`: 412 unless that version is'
    " current. The part of an ETag after the version is not compared. A weak tag (`W/...`), which"
    " some proxies make, never matches: send it without `W/`.",
    "schema": {"type": "string"},
}
_IF_ABSENT: Final = {
    "name": "If-None-Match",
    "in": "header",
    "description": "ETags, or `*` for any: 412 without a change if one of them is that of the"
    " current response to GET of this path.",
    "schema": {"type": "string"},
}
_IF_NONE_MATCH: Final = {
    "name": "If-None-Match",
    "in": "header",
    "description": "ETags of earlier responses: 304 without a body if one of them is current.",
    "schema": {"type": "string"},
}
_ETAG: Final = {
    "description": "Identifies this response; for If-None-Match.",
    "schema": {"type": "string", "pattern": '^"[0-9a-f]{16}"$'},
}
_VERSIONED_ETAG: Final = {
    "description": "Starts with the version, which If-Match compares. The whole tag identifies this"
    " response; for If-None-Match.",
    "schema": {"type": "string", "pattern": '^"[0-9]+-[0-9a-f]{16}"$'},
}
_LOCATION: Final = {
    "description": "Path of the created resource.",
    "schema": {"type": "string", "format": "uri-reference"},
}
_REPLAYED: Final = {
    "description": "Sent if the operation was executed before: this is its stored response.",
    "schema": {"type": "string", "const": "true"},
}
_MISMATCH: Final = "VERSION_MISMATCH"
"""The reason for another version than that in If-Match: the gateway compares it for reads."""
_TRACED: Final = {"Trace-Id": {"$ref": "#/components/headers/TraceId"}}


def header_fields(contracts: Contracts) -> frozenset[str]:
    """Return the full names of the request fields that REST takes only from headers."""
    return frozenset(
        f"{method.input_type.full_name}.{options.expected_version}"
        for method in contracts.methods
        if (options := contracts.method_options[method.full_name]).expected_version
    )


class RestHeaders:
    """The headers of one binding of a method, and the statuses that they lead to.

    `errors` has the error responses. `created`: a response has the path of a new resource.
    `readable`: a GET has the same path.
    """

    def __init__(
        self,
        contracts: Contracts,
        method: MethodDescriptor,
        binding: Binding,
        *,
        errors: ErrorResponses,
        created: bool,
        readable: bool,
    ) -> None:
        options = contracts.method_options[method.full_name]
        safe = options.idempotency is Idempotency.NO_SIDE_EFFECTS
        self._content = bool(method.output_type.fields) or method.server_streaming
        has_body = self._content and not method.server_streaming
        versioned = bool(options.version)
        tagged = has_body and binding.status in (200, 201) and (safe or versioned)
        self._etag = (_VERSIONED_ETAG if versioned else _ETAG) if tagged else None
        self._repeatable = not safe
        self._replays = self._repeatable and not method.server_streaming
        self._cacheable = tagged and safe and binding.verb == "GET"
        self._creates = not safe and readable
        expects = bool(options.expected_version)
        self._matched = expects or (tagged and safe and versioned)
        self._body = bool(binding.body)
        self._created = created
        self._secret = options.secret_response
        self._errors = errors
        self._reasons = options.reasons

    def parameters(self) -> list[Schema]:
        """Return the headers of the request, as parameters."""
        return [
            *([self._idempotency_key()] if self._repeatable else []),
            *([_IF_MATCH] if self._matched else []),
            *([_IF_NONE_MATCH] if self._cacheable else []),
            *([_IF_ABSENT] if self._creates else []),
        ]

    def _idempotency_key(self) -> Schema:
        return {
            "name": "Idempotency-Key",
            "in": "header",
            "description": _IDEMPOTENCY_KEY.format(effect=_NOT_STORED if self._secret else _STORED),
            "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,128}$"},
        }

    def of_success(self) -> dict[str, Any]:
        """Return the headers of a successful response, in its member `headers`."""
        headers: dict[str, Any] = {"ETag": self._etag} if self._etag else {}
        headers |= {"Location": _LOCATION} if self._created else {}
        headers |= {"Idempotency-Replayed": _REPLAYED} if self._replays else {}
        return {"headers": headers | _TRACED}

    def responses(self) -> dict[str, Schema]:
        """Return every response except the successful one."""
        unchanged = {
            "description": "The response still has an ETag of If-None-Match.",
            "headers": {"ETag": self._etag} | _TRACED,
        }
        names = dict.fromkeys([*self._reasons, *([_MISMATCH] if self._matched else [])])
        failures = self._errors.of_operation(self._failed_statuses(), names)
        special = {"304": unchanged} if self._cacheable else {}
        return dict(sorted((special | failures).items()))

    def _failed_statuses(self) -> Iterator[str]:
        """Yield the statuses of the errors that do not depend on the method."""
        yield from ("400", "401", "422", "429", "503", "504")
        if self._content:
            yield "406"
        if self._repeatable:
            yield "409"
        if self._matched or self._creates:
            yield "412"
        if self._body:
            yield from ("408", "413", "415")
