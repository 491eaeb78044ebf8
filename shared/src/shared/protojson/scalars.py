"""Read scalar values: from JSON to the Python value of a field."""

import math
import re
import struct
import sys
from base64 import b64decode
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from shared.protojson.refusal import RefusedError

__all__ = ["NULL_VALUE", "Read", "read_bytes", "read_text", "scalar_reader"]

_F = FieldDescriptor
NULL_VALUE: Final = "google.protobuf.NullValue"
_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_MAX_INTEGER_TEXT: Final = 64
"""Characters of an integer in a string."""
_MAX_DIGITS: Final = 20
"""Digits of the largest integer of 64 bits."""
_MAX_FLOAT_TEXT: Final = 1_100
"""Characters of a number; the smallest double has 1,076 of them without an exponent."""
_MAX_DOUBLE: Final = sys.float_info.max
_NAMED: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_MAX_NAMES: Final = 20
"""Names of an enum in an error."""
_TO_STANDARD: Final = str.maketrans("-_", "+/")

Read = Callable[[Any], Any]
"""Takes a JSON value; returns the value of the field, or raises RefusedError."""


def read_text(value: Any) -> Any:
    """Return a string; RefusedError if it has lone surrogates, which UTF-8 cannot encode."""
    if type(value) is not str:
        raise RefusedError("type", "must be a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RefusedError("format", "must be Unicode text") from None
    return value


def read_bool(value: Any) -> Any:
    """Return a boolean."""
    if value is True or value is False:
        return value
    raise RefusedError("type", "must be true or false")


def read_bytes(value: Any) -> bytes:
    """Return the bytes of base64 text, standard or URL-safe, with or without padding."""
    if type(value) is not str:
        raise RefusedError("type", "must be a string in base64")
    bare = value.rstrip("=")
    padding = len(value) - len(bare)
    try:
        if padding and len(value) % 4:
            raise ValueError("incomplete padding")
        needed = "=" * (-len(bare) % 4)
        if padding > 2 or len(needed) > 2:
            raise ValueError("incomplete byte")
        return b64decode(bare.translate(_TO_STANDARD) + needed, validate=True)
    except ValueError:
        raise RefusedError("format", "must be base64") from None


def scalar_reader(field: FieldDescriptor) -> Read:
    """Return the reader of a scalar or enum field."""
    if field.enum_type is not None:
        return _enum(field.enum_type)
    return _SCALARS[field.type]


def _integer(low: int, high: int) -> Read:
    def read(value: Any) -> int:
        number: int = value if type(value) is int else _whole(value)
        if low <= number <= high:
            return number
        raise RefusedError("range", f"must be from {low} to {high}")

    return read


def _whole(value: Any) -> int:
    """Return the integer of a number such as 5.0, or of a string such as "5" or "1e2"."""
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is str:
        if len(value) > _MAX_INTEGER_TEXT or not _NUMBER.fullmatch(value):
            raise RefusedError("format", "must be a whole number")
        if (number := _decimal(value)) == number.to_integral_value():
            return int(number)
    raise RefusedError("type", "must be a whole number")


def _decimal(text: str) -> Decimal:
    """Return the number of a text; RefusedError beyond 20 digits, which `int` converts slowly."""
    try:
        number = Decimal(text)
    except InvalidOperation:  # an exponent of many digits
        number = Decimal("Infinity")
    if (number and number.adjusted() > _MAX_DIGITS) or number.is_infinite():
        raise RefusedError("range", "is too large or too small")
    return number


def _double(value: Any) -> float:
    if type(value) is float or type(value) is int:
        number = float(value) if abs(value) <= _MAX_DOUBLE else math.inf
    elif type(value) is not str:
        raise RefusedError("type", "must be a number")
    elif value in _NAMED:
        return _NAMED[value]
    elif len(value) <= _MAX_FLOAT_TEXT and _NUMBER.fullmatch(value):
        number = float(value)
    else:
        raise RefusedError("format", "must be a number")
    if math.isfinite(number):
        return number
    raise RefusedError("range", "is too large for 64 bits")


def _single(value: Any) -> float:
    number = _double(value)
    try:
        struct.pack("<f", number)  # rounds to 32 bits
    except OverflowError:
        raise RefusedError("range", "is too large for 32 bits") from None
    return number


def _enum(kind: EnumDescriptor) -> Read:
    """Return the reader of an enum by name or number; an open enum takes unknown numbers."""
    numbers = {name: value.number for name, value in kind.values_by_name.items()}
    names = list(numbers)
    allowed = ", ".join(names[:_MAX_NAMES]) + (" ..." if names[_MAX_NAMES:] else "")
    may_be_null = kind.full_name == NULL_VALUE

    def read(value: Any) -> int:
        known = numbers.get(value) if type(value) is str else None
        if known is not None:
            return known
        if value is None and may_be_null:
            return 0
        try:
            if type(value) is str and not _INTEGER_TEXT.fullmatch(value):
                raise RefusedError("format", "must be a name")
            number: int = _int32(value)
        except RefusedError as refused:
            if refused.found[0][1] == "range":
                raise
            rule = "unknown_value" if type(value) is str else "type"
            raise RefusedError(rule, f"must be one of {allowed}") from None
        if kind.is_closed and number not in kind.values_by_number:
            raise RefusedError("unknown_value", f"must be one of {allowed}")
        return number

    return read


_INTEGER_TEXT: Final = re.compile("-?[0-9]+")
_int32: Final = _integer(-(2**31), 2**31 - 1)
_int64: Final = _integer(-(2**63), 2**63 - 1)
_uint32: Final = _integer(0, 2**32 - 1)
_uint64: Final = _integer(0, 2**64 - 1)
_SCALARS: Final[dict[int, Read]] = {
    _F.TYPE_BOOL: read_bool,
    _F.TYPE_STRING: read_text,
    _F.TYPE_BYTES: read_bytes,
    _F.TYPE_DOUBLE: _double,
    _F.TYPE_FLOAT: _single,
    **dict.fromkeys((_F.TYPE_INT32, _F.TYPE_SINT32, _F.TYPE_SFIXED32), _int32),
    **dict.fromkeys((_F.TYPE_INT64, _F.TYPE_SINT64, _F.TYPE_SFIXED64), _int64),
    **dict.fromkeys((_F.TYPE_UINT32, _F.TYPE_FIXED32), _uint32),
    **dict.fromkeys((_F.TYPE_UINT64, _F.TYPE_FIXED64), _uint64),
}
