"""Write canonical ProtoJSON, by functions that are made once per message type.

Fields without presence are always written (json_format's always_print_fields_with_no_presence).
"""

import math
import struct
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from shared.bounds import is_map
from shared.protojson import structs, times
from shared.protojson.scalars import NULL_VALUE

__all__ = ["to_document", "to_packed"]

Convert = Callable[[Any], Any]

_F = FieldDescriptor
_GOOGLE: Final = "google.protobuf."
_LONG: Final = (_F.CPPTYPE_INT64, _F.CPPTYPE_UINT64)
_WRAPPERS: Final = "google/protobuf/wrappers.proto"
_SPECIAL_WRITERS: Final[dict[str, Convert]] = {
    f"{_GOOGLE}Timestamp": times.write_time,
    f"{_GOOGLE}Duration": times.write_duration,
    f"{_GOOGLE}FieldMask": lambda mask: mask.ToJsonString(),
    f"{_GOOGLE}Struct": structs.write_struct,
    f"{_GOOGLE}ListValue": structs.write_list,
    f"{_GOOGLE}Value": structs.write_value,
}
_MAX_EXACT: Final = 1e6
"""Below it, whole numbers have six digits at most, and are exact in 32 bits."""


def to_document(message: Message) -> Any:
    """Return a message as JSON.

    Raises ValueError, KeyError or google.protobuf's Error for a message that JSON cannot represent,
    such as one with a time beyond year 9999 or an Any of an unknown type.
    """
    return _writer(message.DESCRIPTOR)(message)


@cache
def _writer(kind: Descriptor) -> Convert:
    special = _SPECIAL_WRITERS.get(kind.full_name)
    if special is not None:
        return special
    if kind.full_name == f"{_GOOGLE}Any":
        return _write_any
    if kind.file.name == _WRAPPERS:
        value = _value(kind.fields_by_name["value"]) or _same
        return lambda wrapper: value(wrapper.value)
    return _plain(kind)


def _plain(kind: Descriptor) -> Convert:
    """Return the writer of a message type with the ordinary JSON, an object of its fields."""
    always = [field for field in kind.fields if not field.has_presence]
    names, get_all = [field.json_name for field in always], _getter(always)
    converted = [(field.json_name, convert) for field in always if (convert := _field(field))]
    optional = [
        (field.name, field.json_name, attrgetter(field.name), _field(field) or _same)
        for field in kind.fields
        if field.has_presence
    ]

    def write(message: Any) -> dict[str, Any]:
        document = dict(zip(names, get_all(message), strict=True))
        for name, convert in converted:
            document[name] = convert(document[name])
        for field_name, name, get, convert in optional:
            if message.HasField(field_name):
                document[name] = convert(get(message))
        return document

    return write


def _getter(fields: Sequence[FieldDescriptor]) -> Convert:
    """Return a function that returns the values of all these fields."""
    match fields:
        case []:
            return lambda _message: ()
        case [field]:
            get = attrgetter(field.name)
            return lambda message: (get(message),)
    return attrgetter(*(field.name for field in fields))


def _field(field: FieldDescriptor) -> Convert | None:
    if is_map(field):
        return _map(field)
    one = _value(field)
    if not field.is_repeated:
        return one
    return list if one is None else lambda values: [one(value) for value in values]


def _map(field: FieldDescriptor) -> Convert:
    key, value = field.message_type.fields  # type: ignore[union-attr]  # a map's entry
    convert = _value(value) or _same
    name = _boolean if key.cpp_type == _F.CPPTYPE_BOOL else str
    return lambda entries: {name(each): convert(entries[each]) for each in entries}


def _value(field: FieldDescriptor) -> Convert | None:
    """Return a converter for one value, None if JSON represents it unchanged."""
    if kind := field.message_type:
        return lambda message: _writer(kind)(message)  # made later: the type may be recursive
    if field.enum_type is not None:
        return _enum(field.enum_type)
    if field.cpp_type in _LONG:
        return str
    if field.type == _F.TYPE_BYTES:
        return lambda data: b64encode(data).decode()
    if field.type == _F.TYPE_FLOAT:
        return _single
    return _double if field.type == _F.TYPE_DOUBLE else None


def _enum(kind: EnumDescriptor) -> Convert:
    if kind.full_name == NULL_VALUE:
        return lambda _number: None
    names = {number: value.name for number, value in kind.values_by_number.items()}
    return lambda number: names.get(number, number)


def _double(number: float) -> Any:
    if math.isfinite(number):
        return number
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"


def _single(number: float) -> Any:
    """Return the number with the fewest digits that is equal in 32 bits."""
    if not math.isfinite(number):
        return _double(number)
    if -_MAX_EXACT < number < _MAX_EXACT and number.is_integer():
        return number
    for digits in (6, 7, 8):
        short = float(f"{number:.{digits}g}")
        if _as_single(short) == number:
            return short
    return float(f"{number:.9g}")  # enough for every 32-bit number


def _as_single(number: float) -> float | None:
    try:
        [single] = struct.unpack("<f", struct.pack("<f", number))
    except OverflowError:
        return None
    return float(single)


def _write_any(message: Any) -> dict[str, Any]:
    """Return an Any: `@type`, then the fields of the message or, for a special type, `value`."""
    if not message.ListFields():
        return {}
    pool = message.DESCRIPTOR.file.pool
    kind = pool.FindMessageTypeByName(message.type_url.rpartition("/")[2])
    return to_packed(GetMessageClass(kind).FromString(message.value), message.type_url)


def to_packed(message: Message, type_url: str) -> dict[str, Any]:
    """Return the JSON of an Any that contains `message`; raises like `to_document`."""
    kind: Any = message.DESCRIPTOR
    document = _writer(kind)(message)
    special = kind.full_name in _SPECIAL_WRITERS or kind.file.name == _WRAPPERS
    if special or kind.full_name == f"{_GOOGLE}Any":
        return {"@type": type_url, "value": document}
    return {"@type": type_url, **document}


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _same(value: Any) -> Any:
    return value
