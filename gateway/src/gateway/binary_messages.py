"""Messages of clients in protobuf's binary format, for REST and the Connect protocol."""

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message

from gateway.media_types import BINARY, JSON, MERGE_PATCH, NDJSON
from gateway.parameters import FieldPath, field_named, violation
from postbus.registry import HttpRule, Method
from shared.errors import FieldViolation
from shared.wire import message_class, parse_as, require_few_elements

__all__ = ["BinaryBody", "remove_unknown", "request_types", "response_types"]


def request_types(method: Method, rule: HttpRule) -> tuple[str, ...]:
    """Return the media types of the body of a request, none if it has no body."""
    if not rule.body:
        return ()
    json = (JSON, MERGE_PATCH) if rule.verb == "PATCH" else (JSON,)
    return json + BINARY if _is_message(method.request_name, rule.body) else json


def response_types(method: Method, rule: HttpRule) -> tuple[str, ...]:
    """Return the media types of the body of a response, the preferred one first.

    There is no standard for a stream of binary messages over HTTP.
    """
    if method.streams:
        return (NDJSON,)
    return (JSON, *BINARY) if _is_message(method.response_name, rule.response_body) else (JSON,)


def _is_message(name: str, body: str) -> bool:
    """Return whether a body is a message; a list or a number has no binary form of its own."""
    kind: Any = message_class(name).DESCRIPTOR
    field = field_named(kind, body)
    return field is None or (field.message_type is not None and not field.is_repeated)


def remove_unknown(message: Message) -> bool:
    """Remove the unknown fields of a message, at every depth; return whether it had any.

    A worker with a later contract would read fields that the gateway has not checked. Raises
    INVALID_FIELDS if lists are too long: what reads their elements later takes bounded time.
    """
    require_few_elements(message)
    size = message.ByteSize()
    message.DiscardUnknownFields()
    return message.ByteSize() != size


class BinaryBody:
    """The body of one HTTP binding in protobuf's binary format."""

    def __init__(
        self,
        request: type[Message],
        rule: HttpRule,
        variables: Iterable[FieldPath],
        expected_version: Any,
    ) -> None:
        self._request = request
        self._variables = tuple(variables)
        self._expected_version = expected_version
        descriptor: Any = request.DESCRIPTOR
        self._field: Any = field_named(descriptor, rule.body)

    def read(self, data: bytes, parameters: Message) -> tuple[Message, list[FieldViolation]]:
        """Return the request message with body and parameters, and the violations of the body.

        Raises MALFORMED_MESSAGE. Fields that JSON refuses are refused too: unknown ones, the one of
        If-Match, and those that differ from the path.
        """
        message: Any = self._request()
        target = message if self._field is None else getattr(message, self._field.name)
        target.CopyFrom(parse_as(type(target), data, counted=False))
        found = []
        if remove_unknown(message):
            path = "" if self._field is None else self._field.json_name
            text = "a field, or the type of a field, is not in the contract"
            found.append(violation(path, "unknown_field", text))
        expected = self._expected_version
        if expected is not None and getattr(message, expected.name):
            message.ClearField(expected.name)
            found.append(violation(expected.json_name, "unknown_field", "only If-Match sets it"))
        found += [
            violation(each.path, "duplicate", "differs from the path")
            for each in self._variables
            if each.differs(message, parameters)
        ]
        message.MergeFrom(parameters)
        return message, found
