"""Read and write ProtoJSON (https://protobuf.dev/programming-guides/json).

The writer writes the canonical form. The reader accepts all forms that the guide requires: `null`
for an unset field, field names in lowerCamelCase or as in the .proto file, enums by name or number,
numbers as strings, base64 of both alphabets. Other input is refused with the path of the field.
"""

import logging
from typing import Any, Final

from google.protobuf.message import Error, Message

from shared.errors import ServiceError, internal
from shared.limited_log import LimitedLog
from shared.protojson.containers import takes_null
from shared.protojson.reader import Reader
from shared.protojson.text import parse_json, read_json, require_unique
from shared.protojson.writer import to_document, to_packed

__all__ = [
    "packed",
    "parse_json",
    "read_json",
    "read_message",
    "require_unique",
    "takes_null",
    "write_message",
]

_log: Final = LimitedLog()
_UNWRITABLE = (ValueError, KeyError, OverflowError, Error)

read_message: Final = Reader()
"""Returns the message of a class that a JSON document describes; see `Reader.__call__`."""


def write_message(message: Message) -> Any:
    """Return a message as canonical ProtoJSON, in Python values that orjson can write.

    Raises INTERNAL for a message that JSON cannot represent, such as one with a time beyond year
    9999 or an Any of an unknown type.
    """
    try:
        return to_document(message)
    except _UNWRITABLE:
        raise _not_json(message) from None


def packed(message: Message) -> dict[str, Any]:
    """Return the JSON of a google.protobuf.Any that contains `message`; see `write_message`."""
    try:
        return to_packed(message, f"type.googleapis.com/{message.DESCRIPTOR.full_name}")
    except _UNWRITABLE:
        raise _not_json(message) from None


def _not_json(message: Message) -> ServiceError:
    name = message.DESCRIPTOR.full_name
    _log.write(logging.WARNING, "message.not_json", key=name, message_type=name)
    return internal()
