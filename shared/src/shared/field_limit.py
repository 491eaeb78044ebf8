"""The number of fields of an encoded message, counted before it is parsed.

A parsed field takes up to 50 times the memory of its bytes: 8 MiB can hold 4 million empty elements
of a list, which would stop the event loop of the receiver for seconds.
"""

from functools import cache
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from shared.bounds import MAX_NESTING

__all__ = ["UNCOUNTED_BYTES", "exceeds_field_limit"]

_MAX_FIELDS: Final = 50_000
"""Fields of all levels of one message, elements of packed lists included."""
UNCOUNTED_BYTES: Final = 16 * 2**10
"""Bytes of a message that callers parse uncounted: it has at most 8,192 fields, or 16,384 elements
of packed lists."""
_FIXED: Final = {1: 8, 5: 4}
"""Bytes of the wire types I64 and I32 (https://protobuf.dev/programming-guides/encoding)."""
_VARINT, _LEN, _GROUP = 0, 2, 3
_VARINT_BYTES: Final = 10
_CONTINUED: Final = bytes(range(0x80, 0x100))
"""The bytes of a varint but its last one."""

_EIGHT: Final = (
    FieldDescriptor.TYPE_DOUBLE,
    FieldDescriptor.TYPE_FIXED64,
    FieldDescriptor.TYPE_SFIXED64,
)
_FOUR: Final = (
    FieldDescriptor.TYPE_FLOAT,
    FieldDescriptor.TYPE_FIXED32,
    FieldDescriptor.TYPE_SFIXED32,
)
_UNPACKED: Final = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)

_Plan = dict[int, Descriptor | int]
"""Of the fields that contain fields, by number: the type of a message, or, of a packed list, the
bytes of an element; 0 for varints."""


def exceeds_field_limit(kind: type[Message], data: bytes) -> bool:
    """Return whether an encoded message has more than 50,000 fields.

    Bytes that are no message are left to the parser.
    """
    try:
        return _count(_plan(kind.DESCRIPTOR), data) > _MAX_FIELDS
    except IndexError:
        return False


def _count(plan: _Plan, data: bytes) -> int:
    """Count the fields of a message, at least until there are too many."""
    count, position, end, groups = 0, 0, len(data), 0
    outer: list[tuple[_Plan, int]] = []
    while count <= _MAX_FIELDS:
        while position >= end:
            if not outer:
                return count
            plan, end = outer.pop()
        tag, position = _varint(data, position)
        count += 1
        kind = tag & 7
        if kind == _VARINT:
            _, position = _varint(data, position)
        elif kind == _LEN:
            size, position = _varint(data, position)
            content = plan.get(tag >> 3)
            if isinstance(content, Descriptor):
                outer.append((plan, end))
                plan, end = _plan(content), position + size
                continue
            if content is not None:
                count += _elements(data[position : position + size], content)
            position += size
        elif kind in _FIXED:
            position += _FIXED[kind]
        else:  # the begin or the end of a group
            groups += 1 if kind == _GROUP else -1
            if not 0 <= groups <= MAX_NESTING:
                raise IndexError("groups that the parser refuses")
    return count


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the varint at `position` and the position behind it; IndexError if malformed."""
    value = 0
    for shift in range(0, 7 * _VARINT_BYTES, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # else more bytes follow
            return value, position
    raise IndexError("a varint has at most ten bytes")


def _elements(packed: bytes, size: int) -> int:
    return len(packed) // size if size else len(packed.translate(None, _CONTINUED))


@cache
def _plan(kind: Descriptor) -> _Plan:
    return {field.number: found for field in kind.fields if (found := _content(field)) is not None}


def _content(field: FieldDescriptor) -> Descriptor | int | None:
    if field.message_type is not None:
        return field.message_type
    if not field.is_repeated or field.type in _UNPACKED:
        return None
    return 8 if field.type in _EIGHT else 4 if field.type in _FOUR else 0
