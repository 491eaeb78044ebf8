"""Messages as canonical proto3 JSON, by a function that is made once for each kind of message.

google's json_format asks each field of each message what it is, in Python: most of what the answer
with a page of posts took. It still writes what is rare here: floating-point numbers, `Any`, and the
other messages of google with a JSON form of their own.
"""

import base64
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from postbus.codec import POOL

__all__ = ["write_json"]

Convert = Callable[[Any], Any]

_EPOCH: Final = datetime(1970, 1, 1)  # UTC; written with a Z
_FIRST_SECOND: Final = -62135596800
_LAST_SECOND: Final = 253402300799
_LONG: Final = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
_RARE: Final = (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE)


def write_json(message: Any) -> Any:
    """Return a message as JSON, with every field that has no presence.

    Raises ValueError or json_format.Error for what JSON can't say, such as a time beyond year 9999.
    """
    return _writer(message.DESCRIPTOR)(message)


@cache
def _writer(kind: Descriptor) -> Convert:
    if kind.full_name == "google.protobuf.Timestamp":
        return _time
    if kind.full_name.startswith("google.protobuf.") or any(map(_is_rare, kind.fields)):
        return _by_google
    always = [field for field in kind.fields if not field.has_presence]
    names, get_all = [field.json_name for field in always], _getter(always)
    converted = [(field.json_name, convert) for field in always if (convert := _container(field))]
    perhaps = [
        (field.name, field.json_name, attrgetter(field.name), _container(field) or _same)
        for field in kind.fields
        if field.has_presence
    ]

    def write(message: Any) -> dict[str, Any]:
        document = dict(zip(names, get_all(message), strict=True))
        for name, convert in converted:
            document[name] = convert(document[name])
        for given, name, get, convert in perhaps:
            if message.HasField(given):
                document[name] = convert(get(message))
        return document

    return write


def _getter(fields: Sequence[FieldDescriptor]) -> Convert:
    """Return what gets all values at once."""
    match fields:
        case []:
            return lambda _message: ()
        case [field]:
            get = attrgetter(field.name)
            return lambda message: (get(message),)
    return attrgetter(*(field.name for field in fields))


def _container(field: FieldDescriptor) -> Convert | None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        convert = _value(value) or _same
        name = _boolean if key.cpp_type == FieldDescriptor.CPPTYPE_BOOL else str
        return lambda entries: {name(each): convert(entries[each]) for each in entries}
    one = _value(field)
    if not field.is_repeated:
        return one
    return list if one is None else lambda values: [one(value) for value in values]


def _value(field: FieldDescriptor) -> Convert | None:
    """Return what converts one value, None where JSON has it as it is."""
    if kind := field.message_type:
        return lambda message: _writer(kind)(message)  # not made yet if it holds itself
    if field.enum_type is not None:
        names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
        return lambda number: names.get(number, number)
    if field.cpp_type in _LONG:
        return str
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda data: base64.b64encode(data).decode()
    return None


def _is_rare(field: FieldDescriptor) -> bool:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return any(map(_is_rare, field.message_type.fields))
    null = field.enum_type is not None and field.enum_type.full_name == "google.protobuf.NullValue"
    return null or field.cpp_type in _RARE


def _by_google(message: Any) -> Any:
    return json_format.MessageToDict(
        message, always_print_fields_with_no_presence=True, descriptor_pool=POOL
    )


def _time(value: Any) -> str:
    """As json_format writes it: RFC 3339 with 0, 3, 6 or 9 digits of the second."""
    return _time_text(value.seconds, value.nanos)


@lru_cache(maxsize=1024)
def _time_text(seconds: int, nanos: int) -> str:
    """What is shown at the same time has the same times in it."""
    if not (_FIRST_SECOND <= seconds <= _LAST_SECOND and 0 <= nanos < 1_000_000_000):
        raise ValueError("no time of RFC 3339")
    text = (_EPOCH + timedelta(seconds=seconds)).isoformat()
    if not nanos:
        return f"{text}Z"
    if nanos % 1000:
        return f"{text}.{nanos:09}Z"
    return (
        f"{text}.{nanos // 1000:06}Z" if nanos % 1_000_000 else f"{text}.{nanos // 1_000_000:03}Z"
    )


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _same(value: Any) -> Any:
    return value
