"""Kinds of fields, as far as their JSON and Python forms differ."""

from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

__all__ = [
    "TIMES",
    "WRAPPERS",
    "choices",
    "fields_along",
    "is_map",
    "is_optional",
    "is_plain_message",
    "is_structured",
    "message_of",
    "oneof_of",
    "value_of",
]

_GOOGLE: Final = "google.protobuf."
TIMES: Final = {f"{_GOOGLE}Timestamp": "time", f"{_GOOGLE}Duration": "duration"}
WRAPPERS: Final = frozenset(
    f"{_GOOGLE}{kind}Value"
    for kind in ("Bool", "Bytes", "Double", "Float", "Int32", "Int64", "String", "UInt32", "UInt64")
)
_STRINGS: Final = frozenset({*TIMES, f"{_GOOGLE}FieldMask"})


def is_map(field: FieldDescriptor) -> bool:
    """Return whether the field is a map."""
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def is_optional(field: FieldDescriptor) -> bool:
    """Return whether the field is marked `optional`, which makes a oneof of its own for it."""
    oneof = field.containing_oneof
    return oneof is not None and oneof.name == f"_{field.name}"


def oneof_of(field: FieldDescriptor) -> OneofDescriptor | None:
    """Return the oneof that the field is declared in; None for the one that `optional` makes."""
    return None if is_optional(field) else field.containing_oneof


def choices(message: Descriptor) -> list[OneofDescriptor]:
    """Return the declared oneofs; `optional` makes further ones."""
    return [
        oneof for oneof in message.oneofs if not any(is_optional(field) for field in oneof.fields)
    ]


def fields_along(message: Descriptor, path: str) -> list[FieldDescriptor]:
    """Return the fields along a path of proto names, `post.version`; KeyError if one is missing."""
    fields: list[FieldDescriptor] = []
    kind: Descriptor | None = message
    for name in path.split(".") if path else ():
        if kind is None:
            raise KeyError(name)
        fields.append(kind.fields_by_name[name])
        kind = fields[-1].message_type
    return fields


def value_of(field: FieldDescriptor) -> FieldDescriptor:
    """Return the field of the values of a map; for any other field, the field itself."""
    return message_of(field).fields_by_name["value"] if is_map(field) else field


def message_of(field: FieldDescriptor) -> Descriptor:
    """Return the message type of a field; TypeError if it has none."""
    if field.message_type is None:
        raise TypeError(f"{field.full_name} holds no message")
    return field.message_type


def is_structured(field: FieldDescriptor) -> bool:
    """Return whether JSON writes one value as an object or array, or as any kind of value."""
    return bool(field.message_type and field.message_type.full_name not in WRAPPERS | _STRINGS)


def is_plain_message(field: FieldDescriptor) -> bool:
    """Return whether the field is one message that has no JSON form of its own."""
    message = field.message_type
    single = message is not None and not field.is_repeated
    return bool(single and message and not message.full_name.startswith(_GOOGLE))
