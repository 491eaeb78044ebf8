"""Convert HTTP requests to valid messages, and messages to the bodies of responses.

The conversion is that of google.api.http and ProtoJSON. The rules of the contract are checked by
`shared.wire.find_violations`.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import orjson
from google.protobuf.message import Message

from gateway.binary_messages import BinaryBody, request_types, response_types
from gateway.json_bodies import JsonBody
from gateway.media_types import BINARY, JSON
from gateway.parameters import Document, FieldPath, field_named, find_field_path, violation
from gateway.raw_bodies import request_field, response_field
from gateway.update_masks import Resource, derive_mask, resource_of, unknown_paths
from postbus.registry import HttpRule, Method
from shared.errors import FieldViolation, ServiceError
from shared.output_only import remover
from shared.protojson import read_message, write_message
from shared.wire import find_violations, invalid_fields, message_class

__all__ = ["Transcoder"]

_PARAMETER: Final = re.compile(r"\{([^}]+)\}")


class Transcoder:
    """Converts HTTP requests to request messages, and responses to bodies, for one HTTP binding."""

    def __init__(self, method: Method, rule: HttpRule) -> None:
        self.method = method
        self.rule = rule
        self._request = message_class(method.request_name)
        self._descriptor: Any = self._request.DESCRIPTOR
        self._variables: list[tuple[FieldPath, str]] = [
            (field, template)
            for path, template in rule.variables
            if (field := find_field_path(self._descriptor, path))
        ]
        expected: Any = self._descriptor.fields_by_name.get(method.expected_version)
        self._header_names = frozenset((expected.name, expected.json_name) if expected else ())
        """Names of the field that only If-Match sets."""
        self._bound_fields = {field.path for field, _ in self._variables} | self._header_names
        """Fields that the path, the body or If-Match sets, and so no query parameter."""
        if rule.body:
            self._bound_fields.add(rule.body)
        self.raw_request = request_field(method, rule)
        """The field that takes the body as it is, see `raw_bodies`; None if the body is JSON."""
        self.raw_response = response_field(method, rule)
        """The field with the body of a response as it is; None if the body is JSON."""
        self.request_types = request_types(method, rule)
        """The media types of a request; empty if it has no body."""
        self.response_types = response_types(method, rule)
        """The media types of a response, the preferred one first; a raw body has its own."""
        response: Any = message_class(method.response_name).DESCRIPTOR
        self.has_content = bool(response.fields) or method.streams or self.raw_response is not None
        """Whether a response has a body."""
        self._response_field = field_named(response, rule.response_body)
        variables = [field for field, _ in self._variables]
        self._binary_body = BinaryBody(self._request, rule, variables, expected)
        self._resource = resource_of(method)
        self._json_body = JsonBody(self._descriptor, rule, self._resource)
        self._remove_output_only = remover(self._descriptor)

    def read(
        self,
        parameters: Mapping[str, str],
        query: Collection[tuple[str, str]],
        body: bytes,
        media_type: str = JSON,
    ) -> Message:
        """Return the request message; `media_type` is one of `request_types`, or any if raw.

        Raises 400 for a malformed body, and INVALID_ARGUMENT with all violations of parameters and
        ProtoJSON; the rules of the contract are checked only if the ProtoJSON is valid.
        """
        raw = self.raw_request
        binary = raw is None and media_type in BINARY
        document: Document = {}
        client_fields: Document | None = None if binary else {}
        if self.rule.body and raw is None and not binary:
            document, client_fields = self._json_body.read(body)
        found: list[FieldViolation] = []
        if self._header_names:
            found += self._remove_header_field(document)
        if self._variables:
            found += self._put_path(document, parameters)
        if query:
            found += self._put_query(document, query)
        try:
            message = read_message(self._request, document)
        except ServiceError as error:
            raise invalid_fields([*found, *error.violations], more=error.more_violations) from None
        if raw is not None:
            _set_raw(message, raw, body, media_type)
        elif binary:
            message, broken = self._binary_body.read(body, message)
            found += broken
        if self._remove_output_only is not None:
            self._remove_output_only(message)
        if self._resource is not None and self._resource.has_mask:
            found += self._set_mask(message, self._resource, client_fields)
        broken, more = find_violations(message)
        if found or broken:
            raise invalid_fields([*found, *broken], more=more)
        return message

    def _remove_header_field(self, document: Document) -> list[FieldViolation]:
        """Remove the field of If-Match from a body."""
        given = self._header_names & document.keys()
        for name in given:
            del document[name]
        return [violation(name, "unknown_field", "only If-Match sets it") for name in given]

    def _put_path(self, document: Document, parameters: Mapping[str, str]) -> list[FieldViolation]:
        """Set the fields of the path."""
        found = [
            field.replace(document, _expand_template(template, parameters))
            for field, template in self._variables
        ]
        return [each for each in found if each]

    def _put_query(
        self, document: Document, query: Iterable[tuple[str, str]]
    ) -> list[FieldViolation]:
        """Set the fields of the query."""
        found = []
        for name, value in query:
            field = None if self.rule.body == "*" else find_field_path(self._descriptor, name)
            if field is None:
                found.append(violation(name, "unknown_field", "no such parameter"))
            elif any(f"{field.path}.".startswith(f"{bound}.") for bound in self._bound_fields):
                message = "is set by the path, the body or If-Match"
                found.append(violation(name, "duplicate", message))
            elif repeated := field.put(document, value):
                found.append(repeated)
        return found

    def _set_mask(
        self, message: Any, resource: Resource, client_fields: Document | None
    ) -> list[FieldViolation]:
        """Check the update mask; a PATCH without one gets the members that the client sent.

        A binary body does not show which fields the client means.
        """
        if message.update_mask.paths or self.rule.verb != "PATCH":
            return unknown_paths(resource, message)
        if client_fields is None:
            return [violation("updateMask", "required", "must name the fields to change")]
        before = "" if self.rule.body == "*" else f"{self.rule.body}."
        in_path = {path.removeprefix(before) for path, _ in self.rule.variables}
        derive_mask(message, resource, client_fields, without=in_path)
        return []

    def raw_body(self, response: Any) -> Any:
        """Return the google.api.HttpBody in a response."""
        return getattr(response, self.raw_response) if self.raw_response else response

    def write(self, response: Any, media_type: str = JSON) -> bytes:
        """Return the body of a response, as one of `response_types` or raw."""
        if self.raw_response is not None:
            data: bytes = self.raw_body(response).data
            return data
        if media_type in BINARY:
            field = self._response_field
            part = response if field is None else getattr(response, field.name)
            return bytes(part.SerializeToString(deterministic=True))  # for the ETag
        document = write_message(response)
        if self.rule.response_body:
            return orjson.dumps(document.get(self.rule.response_body))
        return orjson.dumps(document)


def _set_raw(message: Any, field: str, body: bytes, media_type: str) -> None:
    target = getattr(message, field) if field else message
    target.SetInParent()
    target.content_type = media_type
    target.data = body


def _expand_template(template: str, parameters: Mapping[str, str]) -> str:
    return _PARAMETER.sub(lambda match: parameters[match[1]], template)
