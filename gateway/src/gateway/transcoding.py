"""HTTP to request messages and back, by the rules of google.api.http and proto3 JSON."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson
import structlog
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from pydantic import ValidationError

from gateway.json_writer import write_json
from gateway.parameters import Place, field_named, unknown
from gateway.problems import HttpError
from postbus.codec import POOL
from postbus.registry import HttpRule, Method
from postbus.rest import REQUESTS
from shared.errors import Code, FieldViolation, ServiceError, internal
from shared.wire import invalid_fields, message_class, parse, require_valid, validate

__all__ = ["Document", "Transcoder", "parse_document", "read_json", "to_json"]

_log = structlog.get_logger()

Document = dict[str, Any]

_MASK: Final = "update_mask"
_PARAMETER: Final = re.compile(r"\{([^}]+)\}")


def read_json(body: bytes) -> Any:
    """Return what a body holds; 400 if it is not JSON (RFC 8259)."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise HttpError(
            400, Code.INVALID_ARGUMENT, "MALFORMED_JSON", "The body is not valid JSON."
        ) from None


class Transcoder:
    """One binding of a method: what HTTP says of the request, and how the answer is written."""

    def __init__(self, method: Method, rule: HttpRule) -> None:
        self.method = method
        self.rule = rule
        self._request = message_class(method.request_name)
        self._said = {path for path, _ in rule.variables} | {rule.body} | self._in_header()
        self._patches = rule.verb == "PATCH" and _MASK in self._request.DESCRIPTOR.fields_by_name

    def _in_header(self) -> set[str]:
        """The field that comes from If-Match, and from nowhere else."""
        field = self._request.DESCRIPTOR.fields_by_name.get(self.method.expected_version)
        return {field.json_name} if field else set()

    def read(
        self, parameters: Mapping[str, str], query: Iterable[tuple[str, str]], body: bytes
    ) -> Message:
        """Return the request message; INVALID_ARGUMENT with every violation."""
        document, sent = self._body(body)
        for path, template in self.rule.variables:
            place = Place(self._request.DESCRIPTOR, path)
            place.put(document, _filled(template, parameters))
        for name, value in query:
            place = Place(self._request.DESCRIPTOR, name)
            if self.rule.body == "*" or place.path in self._said:  # it is said elsewhere
                raise unknown(name)
            place.put(document, value)
        message = self._validated(document)
        if self._patches:
            self._derive_mask(message, sent)
        return message

    def _body(self, body: bytes) -> tuple[Document, Document]:
        """What the body says of the request, and what the client sent of the resource."""
        if not self.rule.body:
            return {}, {}
        value = read_json(body)
        if self.rule.body != "*":
            return {self.rule.body: value}, dict(value) if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            raise HttpError(
                400, Code.INVALID_ARGUMENT, "NOT_AN_OBJECT", "The body must be a JSON object."
            )
        return value, dict(value)

    def _validated(self, document: Document) -> Message:
        """Where the document is a message, its violations are those that a worker would find."""
        try:
            REQUESTS[self.method.request_name].model_validate(document)
        except ValidationError as error:
            raise invalid_fields(self._rules_broken(document) or _violations(error)) from None
        message = parse_document(self._request, document)
        require_valid(message)
        return message

    def _rules_broken(self, document: Document) -> list[FieldViolation]:
        try:
            return validate(parse_document(self._request, document))
        except ServiceError:
            return []

    def _derive_mask(self, message: Any, sent: Document) -> None:
        """A PATCH changes the members that the client sent, unless it says which."""
        if message.update_mask.paths:
            return
        resource = message.DESCRIPTOR
        if self.rule.body != "*":
            resource = field_named(resource, self.rule.body).message_type
        in_path = {path for path, _ in self.rule.variables}
        members = {name: value for name, value in sent.items() if name not in in_path}
        if paths := _paths(resource, members):
            message.update_mask.paths.extend(paths)

    def response(self, payload: bytes) -> Message:
        """Return the response message that a reply carries."""
        return parse(self.method.response_name, payload)

    def write(self, response: Message) -> bytes:
        """Return the body that tells of a response, empty for an empty message."""
        if not response.DESCRIPTOR.fields:
            return b""
        document = to_json(response)
        if self.rule.response_body:
            return orjson.dumps(document.get(self.rule.response_body))
        return orjson.dumps(document)


def _filled(template: str, parameters: Mapping[str, str]) -> str:
    """The value of a field: `shelves/{shelf}` with the parameters of the path."""
    return _PARAMETER.sub(lambda match: parameters[match[1]], template)


def _paths(message: Any, document: Document, prefix: str = "") -> list[str]:
    """The fields that a document has: of messages theirs, of all else the whole."""
    paths = []
    for name, value in document.items():
        field = field_named(message, name)
        if field.name == _MASK and not prefix:
            continue
        path = prefix + field.name
        if isinstance(value, dict) and value and _is_plain(field):
            paths += _paths(field.message_type, value, f"{path}.")
        else:
            paths.append(path)
    return paths


def _is_plain(field: FieldDescriptor) -> bool:
    kind = field.message_type
    if kind is None or kind.full_name.startswith("google.protobuf."):
        return False
    return not kind.GetOptions().map_entry


def _violations(error: ValidationError) -> list[FieldViolation]:
    """What is wrong with the form of a document; `rule` is Pydantic's name for it."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        FieldViolation(
            field=_location(detail["loc"]),
            rule=detail["type"],
            message=detail["msg"].removeprefix("Value error, "),
        )
        for detail in details
    ]


def _location(parts: tuple[int | str, ...]) -> str:
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


_UNFORESEEN = (AttributeError, KeyError, RecursionError, TypeError, ValueError)
"""What json_format also raises for hostile documents, such as an `@type` that is a number."""


def parse_document(target: type[Message], document: Document) -> Message:
    """Return the message that proto3 JSON describes; INVALID_ARGUMENT if it describes none."""
    try:
        return json_format.ParseDict(document, target(), descriptor_pool=POOL)
    except (json_format.ParseError, *_UNFORESEEN):
        # The parser's own text quotes the input and names inner types.
        raise ServiceError(
            Code.INVALID_ARGUMENT, "MALFORMED_JSON", "The JSON does not fit the message."
        ) from None


def to_json(message: Message) -> Document:
    """Return canonical proto3 JSON, with every field that has no presence.

    INTERNAL if a service has sent what JSON can't say, such as a time beyond year 9999.
    """
    try:
        document: Document = write_json(message)
    except (ValueError, json_format.Error):
        _log.warning("message.not_json", message_type=message.DESCRIPTOR.full_name)
        raise internal() from None
    return document
