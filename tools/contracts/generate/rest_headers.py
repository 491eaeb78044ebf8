"""Headers of REST in the OpenAPI document: keys of operations, conditional requests."""

from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor

from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.http_rules import Binding
from tools.contracts.generate.json_values import Schema
from tools.contracts.generate.options import expected_version, response_version
from tools.contracts.generate.rest_responses import RESPONSES, failures

__all__ = ["RestHeaders"]

_NO_SIDE_EFFECTS: Final = 1
_IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Names the operation: a repetition with the same key has no second effect and"
    " gets the first answer for 24 hours. A key counts per caller and method: the same key with"
    " another method is another operation, with another body it is refused (422). Without an access"
    " token another body is another operation as well, so choose keys at random. Tokens of a log-in"
    " are not kept: its repetition is 409 `ALREADY_DONE`. While the first request is still running,"
    " a repetition is 409 `OPERATION_RUNNING`.",
    "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,128}$"},
}
_IF_MATCH: Final = {
    "name": "If-Match",
    "in": "header",
    "description": 'An ETag, or the version alone as `"<version>"`: 412 unless that version is'
    " still the current one. What follows the version in an ETag is not compared. A weak tag,"
    " `W/...`, as some proxies make it, never matches: send it without `W/`.",
    "schema": {"type": "string"},
}
_ABSENT: Final = {
    "name": "If-None-Match",
    "in": "header",
    "description": "ETags, or `*` for any: 412, and no change, if it names the current answer to"
    " GET of this path.",
    "schema": {"type": "string"},
}
_IF_NONE_MATCH: Final = {
    "name": "If-None-Match",
    "in": "header",
    "description": "ETags of answers before: 304 without a body if it would be one of them again.",
    "schema": {"type": "string"},
}
_ETAG: Final = {
    "description": "Names exactly this answer, which If-None-Match compares.",
    "schema": {"type": "string", "pattern": '^"[0-9a-f]{16}"$'},
}
_VERSIONED_ETAG: Final = {
    "description": "Begins with the version, which is all that If-Match compares. The whole names"
    " exactly this answer, which If-None-Match compares.",
    "schema": {"type": "string", "pattern": '^"[0-9]+-[0-9a-f]{16}"$'},
}
_LOCATION: Final = {
    "description": "Path of the created resource.",
    "schema": {"type": "string", "format": "uri-reference"},
}
_REPLAYED: Final = {
    "description": "Sent if the operation was done before: this is the answer that it got then.",
    "schema": {"type": "string", "const": "true"},
}
_TRACED: Final = {"Trace-Id": {"$ref": "#/components/headers/TraceId"}}


class RestHeaders:
    """The headers of one binding of a method, and the statuses that come of them.

    `created`: success answers with the path of a new resource. `readable`: GET has the same path.
    """

    def __init__(
        self,
        contracts: Contracts,
        method: MethodDescriptor,
        binding: Binding,
        *,
        created: bool,
        readable: bool,
    ) -> None:
        safe = method.GetOptions().idempotency_level == _NO_SIDE_EFFECTS
        self._content = bool(method.output_type.fields)
        has_body = self._content and not method.server_streaming
        versioned = bool(response_version(contracts, method))
        tagged = has_body and binding.status in (200, 201) and (safe or versioned)
        self._etag = (_VERSIONED_ETAG if versioned else _ETAG) if tagged else None
        self._repeatable = not safe
        self._replays = self._repeatable and not method.server_streaming
        self._known = tagged and safe and binding.verb == "GET"
        self._absent = not safe and readable
        expects = bool(expected_version(contracts, method))
        self._matched = expects or (tagged and safe and versioned)
        self._body = bool(binding.body)
        self._created = created

    def parameters(self) -> list[Schema]:
        """Return the headers of the request, as parameters."""
        return [
            *([_IDEMPOTENCY_KEY] if self._repeatable else []),
            *([_IF_MATCH] if self._matched else []),
            *([_IF_NONE_MATCH] if self._known else []),
            *([_ABSENT] if self._absent else []),
        ]

    def of_success(self) -> dict[str, Any]:
        """Return the headers of a successful response, in its member `headers`."""
        headers: dict[str, Any] = {"ETag": self._etag} if self._etag else {}
        headers |= {"Location": _LOCATION} if self._created else {}
        headers |= {"Idempotency-Replayed": _REPLAYED} if self._replays else {}
        return {"headers": headers | _TRACED}

    def responses(self) -> dict[str, Schema]:
        """Return every response but that of success."""
        known = {
            "description": "It is one of those that If-None-Match names.",
            "headers": {"ETag": self._etag} | _TRACED,
        }
        stale = RESPONSES["Failure"] | {
            "description": "The version is another, the resource is there, or something else"
            " forbids it."
        }
        special = {"304": known} if self._known else {}
        special |= {"412": stale} if self._matched or self._absent else {}
        common = failures(content=self._content, body=self._body, changes=self._repeatable)
        return dict(sorted((special | common).items()))
