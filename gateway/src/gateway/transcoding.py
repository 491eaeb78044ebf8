"""HTTP to request messages and back, by the rules of google.api.http and ProtoJSON."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson
from google.protobuf.message import Message

from gateway.masks import derive_mask, resource_of, unknown_paths
from gateway.parameters import Document, Place, find_place, violation
from gateway.problems import HttpError
from postbus.registry import HttpRule, Method
from shared.errors import Code, FieldViolation, ServiceError
from shared.protojson import read_json, read_message, write_message
from shared.wire import examine, invalid_fields, message_class, parse

__all__ = ["Transcoder"]

_PARAMETER: Final = re.compile(r"\{([^}]+)\}")


def _read_body(body: bytes) -> Any:
    """Return the value of a body: 400 if it is not JSON; 422 beyond the bounds, or with duplicates.

    See `shared.protojson.read_json`.
    """
    try:
        return read_json(body)
    except ServiceError as error:
        if error.reason != "MALFORMED_JSON":
            raise
        raise HttpError(400, error.code, error.reason, "The body is not valid JSON.") from None


class Transcoder:
    """One binding of a method: how a request over HTTP becomes a message, and how its answer is
    written.
    """

    def __init__(self, method: Method, rule: HttpRule) -> None:
        self.method = method
        self.rule = rule
        self._request = message_class(method.request_name)
        self._kind: Any = self._request.DESCRIPTOR
        self._variables: list[tuple[Place, str]] = [
            (place, template)
            for path, template in rule.variables
            if (place := find_place(self._kind, path))
        ]
        self._elsewhere = {place.path for place, _ in self._variables}
        field = self._kind.fields_by_name.get(method.expected_version)
        self._in_header = frozenset((field.name, field.json_name) if field else ())
        """Names of the field that comes from If-Match, and from nowhere else."""
        self._elsewhere |= self._in_header | ({rule.body} if rule.body else set())
        self._resource = resource_of(method) if rule.verb == "PATCH" else None

    def read(
        self, parameters: Mapping[str, str], query: Iterable[tuple[str, str]], body: bytes
    ) -> Message:
        """Return the request message.

        Raises 400 for a body that is not JSON, INVALID_ARGUMENT with all violations of parameters
        and form; the rules are checked only if the form is valid.
        """
        document, sent = self._body(body)
        found = self._refuse_header(document)
        found += self._put_path(document, parameters)
        found += self._put_query(document, query)
        try:
            message = read_message(self._request, document)
        except ServiceError as error:
            raise invalid_fields([*found, *error.violations], more=error.more_violations) from None
        found += self._set_mask(message, sent)
        broken, more = examine(message)
        if found or broken:
            raise invalid_fields([*found, *broken], more=more)
        return message

    def _refuse_header(self, document: Document) -> list[FieldViolation]:
        """Take the field that comes from If-Match out of a body."""
        given = self._in_header & document.keys()
        for name in given:
            del document[name]
        return [violation(name, "unknown_field", "is in If-Match alone") for name in given]

    def _put_path(self, document: Document, parameters: Mapping[str, str]) -> list[FieldViolation]:
        """Set the fields that come from the path."""
        found = []
        for place, template in self._variables:
            text = _PARAMETER.sub(lambda match: parameters[match[1]], template)
            found.append(place.replace(document, text))
        return [each for each in found if each]

    def _put_query(
        self, document: Document, query: Iterable[tuple[str, str]]
    ) -> list[FieldViolation]:
        """Set the fields that come from the query."""
        found = []
        for name, value in query:
            place = None if self.rule.body == "*" else find_place(self._kind, name)
            if place is None:
                found.append(violation(name, "unknown_field", "no such parameter"))
            elif any(f"{place.path}.".startswith(f"{each}.") for each in self._elsewhere):
                found.append(violation(name, "duplicate", "is not a parameter of the query"))
            elif repeated := place.put(document, value):
                found.append(repeated)
        return found

    def _body(self, body: bytes) -> tuple[Document, Document]:
        """Return the part of the request that the body holds, and the members of the resource in
        it, less the ones that a change ignores.
        """
        if not self.rule.body:
            return {}, {}
        whole = self.rule.body == "*"
        try:
            value = _read_body(body)
        except ServiceError as error:
            raise error if whole else _inside(error, self.rule.body) from None
        if isinstance(value, dict):
            value = self._writable(value)
        elif whole:
            raise HttpError(
                400, Code.INVALID_ARGUMENT, "NOT_AN_OBJECT", "The body must be a JSON object."
            )
        elif value is None:
            raise invalid_fields([violation(self.rule.body, "type", "must not be null")])
        sent = value if isinstance(value, dict) else {}
        return (value if whole else {self.rule.body: value}), dict(sent)

    def _writable(self, value: Document) -> Document:
        if self._resource is None or value.keys().isdisjoint(self._resource.read_only):
            return value
        ignored = self._resource.read_only
        return {name: each for name, each in value.items() if name not in ignored}

    def _set_mask(self, message: Any, sent: Document) -> list[FieldViolation]:
        """A PATCH changes the members that the client sent, unless it says which."""
        if self._resource is None or not self._resource.has_mask:
            return []
        if message.update_mask.paths:
            return unknown_paths(self._resource, message)
        before = "" if self.rule.body == "*" else f"{self.rule.body}."
        in_path = {path.removeprefix(before) for path, _ in self.rule.variables}
        derive_mask(message, self._resource, sent, without=in_path)
        return []

    def response(self, payload: bytes) -> Message:
        """Return the response message that a reply carries."""
        return parse(self.method.response_name, payload)

    def write(self, response: Message) -> bytes:
        """Return the body of a response, empty for an empty message."""
        if not response.DESCRIPTOR.fields:
            return b""
        document = write_message(response)
        if self.rule.response_body:
            return orjson.dumps(document.get(self.rule.response_body))
        return orjson.dumps(document)


def _inside(error: ServiceError, place: str) -> ServiceError:
    """Return an INVALID_FIELDS error with `place` before its paths; other errors unchanged."""
    if error.reason != "INVALID_FIELDS":
        return error
    return invalid_fields(
        [
            FieldViolation(
                field=f"{place}.{each.field}" if each.field else place,
                rule=each.rule,
                message=each.message,
            )
            for each in error.violations
        ],
        more=error.more_violations,
    )
