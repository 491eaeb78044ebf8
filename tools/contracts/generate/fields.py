"""Kinds of fields, as their JSON form and Python's tell them apart."""

from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

__all__ = [
    "TIMES",
    "WRAPPERS",
    "choices",
    "is_map",
    "is_optional",
    "is_plain_message",
    "is_structured",
    "message_of",
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
    """Whether it is a map."""
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def is_optional(field: FieldDescriptor) -> bool:
    """Whether it is marked `optional`; that makes a oneof, which nobody wrote."""
    oneof = field.containing_oneof
    return oneof is not None and oneof.name == f"_{field.name}"


def choices(message: Descriptor) -> list[OneofDescriptor]:
    """Return the oneofs that someone wrote."""
    return [
        oneof for oneof in message.oneofs if not any(is_optional(field) for field in oneof.fields)
    ]


def value_of(field: FieldDescriptor) -> FieldDescriptor:
    """Return the field itself; of a map the field of its values."""
    return message_of(field).fields_by_name["value"] if is_map(field) else field


def message_of(field: FieldDescriptor) -> Descriptor:
    """Return the message that a field holds; TypeError if it holds none."""
    if field.message_type is None:
        raise TypeError(f"{field.full_name} holds no message")
    return field.message_type


def is_structured(field: FieldDescriptor) -> bool:
    """Whether JSON writes one value of it as an object or array, or as anything at all."""
    return bool(field.message_type and field.message_type.full_name not in WRAPPERS | _STRINGS)


def is_plain_message(field: FieldDescriptor) -> bool:
    """Whether it holds one message without a JSON form of its own."""
    message = field.message_type
    single = message is not None and not field.is_repeated
    return bool(single and message and not message.full_name.startswith(_GOOGLE))
