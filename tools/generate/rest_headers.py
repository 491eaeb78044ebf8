"""Headers of REST in the OpenAPI document: keys of operations, conditional requests (RFC 9110)."""

from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor

from tools.generate.contracts import Contracts
from tools.generate.http_rules import Binding
from tools.generate.json_values import Schema
from tools.generate.options import expected_version, response_version

__all__ = ["RestHeaders"]

_NO_SIDE_EFFECTS: Final = 1
_IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Names the operation: a repetition with the same key has no second effect.",
    "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,128}$"},
}
_IF_MATCH: Final = {
    "name": "If-Match",
    "in": "header",
    "description": "ETag of an answer before: 412 unless its version is still the current one.",
    "schema": {"type": "string"},
}
_IF_NONE_MATCH: Final = {
    "name": "If-None-Match",
    "in": "header",
    "description": "ETags of answers before: 304 without a body if it would be one of them again.",
    "schema": {"type": "string"},
}
_ETAG: Final = {
    "description": "Strong. Names exactly this answer.",
    "schema": {"type": "string", "pattern": '^"[0-9a-f]{16}"$'},
}
_VERSIONED_ETAG: Final = {
    "description": "Strong. Names exactly this answer; the number in front is the version.",
    "schema": {"type": "string", "pattern": '^"[0-9]+-[0-9a-f]{16}"$'},
}
_REPLAYED: Final = {
    "description": "There if the operation was done before: this is the answer that it got then.",
    "schema": {"type": "string", "const": "true"},
}


class RestHeaders:
    """The headers of one binding of a method, and the statuses that come of them."""

    def __init__(self, contracts: Contracts, method: MethodDescriptor, binding: Binding) -> None:
        safe = method.GetOptions().idempotency_level == _NO_SIDE_EFFECTS
        has_body = bool(method.output_type.fields) and not method.server_streaming
        versioned = bool(response_version(contracts, method))
        tagged = has_body and binding.status in (200, 201) and (safe or versioned)
        self._etag = (_VERSIONED_ETAG if versioned else _ETAG) if tagged else None
        self._repeatable = not safe
        self._replays = self._repeatable and not method.server_streaming
        self._known = tagged and safe and binding.verb == "GET"
        expects = bool(expected_version(contracts, method))
        self._matched = expects or (tagged and safe and versioned)

    def parameters(self) -> list[Schema]:
        """Return the headers of the request, as parameters."""
        return [
            *([_IDEMPOTENCY_KEY] if self._repeatable else []),
            *([_IF_MATCH] if self._matched else []),
            *([_IF_NONE_MATCH] if self._known else []),
        ]

    def of_success(self) -> dict[str, Any]:
        """Return the headers of a successful response, in its member `headers`."""
        headers = {"ETag": self._etag} if self._etag else {}
        headers |= {"Idempotency-Replayed": _REPLAYED} if self._replays else {}
        return {"headers": headers} if headers else {}

    def responses(self, failure: Schema) -> dict[str, Schema]:
        """Return the responses to conditions that do not hold; `failure` is that of a problem."""
        known = {
            "description": "It is one of those that If-None-Match names.",
            "headers": {"ETag": self._etag},
        }
        stale = failure | {"description": "The version is another, or something else forbids it."}
        return ({"304": known} if self._known else {}) | ({"412": stale} if self._matched else {})
