"""ProtoJSON (https://protobuf.dev/programming-guides/json): the one reader and writer.

The writer writes the canonical form. The reader accepts all forms that the guide requires: `null`
for a field that is not set, names of fields in lowerCamelCase or as in the .proto, enums by name or
number, numbers as strings, base64 of both alphabets. All else is refused with the field's path.
"""

from typing import Any, Final

import structlog
from google.protobuf.message import Error, Message

from shared.errors import ServiceError, internal
from shared.protojson.reader import Reader
from shared.protojson.text import parse_json, read_json, require_unique
from shared.protojson.writer import to_document, to_packed

__all__ = [
    "packed",
    "parse_json",
    "read_json",
    "read_message",
    "require_unique",
    "write_message",
]

_log = structlog.get_logger()
_WITHOUT_FORM = (ValueError, KeyError, OverflowError, Error)

read_message: Final = Reader()
"""Reads a document as a message of a class; see `Reader.__call__`."""


def write_message(message: Message) -> Any:
    """Return a message as canonical ProtoJSON, a value for orjson.

    Raises INTERNAL for a message without a JSON form, such as one with a time beyond year 9999 or
    an Any of an unknown type.
    """
    try:
        return to_document(message)
    except _WITHOUT_FORM:
        raise _not_json(message) from None


def packed(message: Message) -> dict[str, Any]:
    """Return a google.protobuf.Any with `message` in it; see `write_message`."""
    try:
        return to_packed(message, f"type.googleapis.com/{message.DESCRIPTOR.full_name}")
    except _WITHOUT_FORM:
        raise _not_json(message) from None


def _not_json(message: Message) -> ServiceError:
    _log.warning("message.not_json", message_type=message.DESCRIPTOR.full_name)
    return internal()
