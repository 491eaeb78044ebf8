"""HTTP to request messages and back, by the rules of google.api.http and proto3 JSON."""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from pydantic import BaseModel, ValidationError

from gateway.problems import HttpError
from postbus.codec import POOL
from postbus.registry import HttpRule, Method
from postbus.rest import REQUESTS
from shared.errors import Code, FieldViolation, ServiceError
from shared.wire import message_class, parse

__all__ = ["parse_document", "read_json", "read_request", "to_json", "write_response"]

Document = dict[str, Any]


def read_json(body: bytes) -> Any:
    """Return what a body holds; 400 if it is not JSON (RFC 8259)."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise HttpError(
            400, Code.INVALID_ARGUMENT, "MALFORMED_JSON", "The body is not valid JSON."
        ) from None


def read_request(
    method: Method,
    rule: HttpRule,
    path: Mapping[str, str],
    query: Iterable[tuple[str, str]],
    body: bytes,
) -> Message:
    """Return the request message of an HTTP request; INVALID_ARGUMENT with every violation."""
    target = message_class(method.request_name)
    document = _body(rule, body)
    sent = list(document)
    for name, value in path.items():
        _put(document, target.DESCRIPTOR, name, value)
    for name, value in query:
        if rule.body == "*" or name in path:  # it was said already
            raise _unknown_parameter(name)
        _put(document, target.DESCRIPTOR, name, value)
    _validate(REQUESTS[method.request_name], document)
    message = parse_document(target, document)
    if rule.verb == "PATCH" and "update_mask" in target.DESCRIPTOR.fields_by_name:
        _derive_mask(message, sent)
    return message


def _body(rule: HttpRule, body: bytes) -> Document:
    if not rule.body:
        return {}
    value = read_json(body)
    if rule.body != "*":
        return {_camel(rule.body): value}
    if not isinstance(value, dict):
        raise HttpError(
            400, Code.INVALID_ARGUMENT, "NOT_AN_OBJECT", "The body must be a JSON object."
        )
    return value


def _put(document: Document, descriptor: Any, path: str, text: str) -> None:
    """Set the field that a path or query parameter names, as `authorId` or `author.id`."""
    *parents, last = path.split(".")
    for parent in parents:
        field = _field(descriptor, parent)
        if field is None or field.message_type is None:
            raise _unknown_parameter(path)
        document = document.setdefault(field.json_name, {})
        descriptor = field.message_type
    field = _field(descriptor, last)
    if field is None or not isinstance(document, dict):
        raise _unknown_parameter(path)
    value = _BOOLEANS.get(text, text) if field.type == FieldDescriptor.TYPE_BOOL else text
    if field.is_repeated:
        document.setdefault(field.json_name, []).append(value)
    else:
        document[field.json_name] = value


_BOOLEANS: Mapping[str, bool] = {"true": True, "false": False}


def _field(descriptor: Any, name: str) -> FieldDescriptor | None:
    """The field with this name, as proto or JSON writes it."""
    fields: list[FieldDescriptor] = descriptor.fields
    return next((field for field in fields if name in (field.name, field.json_name)), None)


def _unknown_parameter(name: str) -> ServiceError:
    violation = FieldViolation(field=name, rule="unknown", message="no such parameter")
    return _invalid([violation])


def _invalid(violations: list[FieldViolation]) -> ServiceError:
    return ServiceError(
        Code.INVALID_ARGUMENT,
        "INVALID_FIELDS",
        "The request breaks the rules of the contract.",
        violations=violations,
    )


def _validate(model: type[BaseModel], document: Document) -> None:
    try:
        model.model_validate(document)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise _invalid(
            [
                FieldViolation(
                    field=_location(detail["loc"]), rule=detail["type"], message=detail["msg"]
                )
                for detail in details
            ]
        ) from None


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


def _derive_mask(message: Any, sent: Iterable[str]) -> None:
    """A PATCH changes the members that the body has, unless it says which."""
    if message.update_mask.paths:
        return
    names = {
        field.name: (field.name, field.json_name)
        for field in message.DESCRIPTOR.fields
        if field.name != "update_mask"
    }
    for name, spellings in names.items():
        if any(spelling in sent for spelling in spellings):
            message.update_mask.paths.append(name)


def write_response(method: Method, rule: HttpRule, payload: bytes) -> bytes:
    """Return the body of the response, empty for an empty message."""
    message = parse(method.response_name, payload)
    if not message.DESCRIPTOR.fields:
        return b""
    if rule.response_body:
        message = getattr(message, rule.response_body)
    return orjson.dumps(to_json(message))


def to_json(message: Message) -> Document:
    """Return canonical proto3 JSON, with every field that has no presence."""
    document: Document = json_format.MessageToDict(
        message, always_print_fields_with_no_presence=True, descriptor_pool=POOL
    )
    return document


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
