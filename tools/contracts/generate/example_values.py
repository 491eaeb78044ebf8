"""Examples of single values in JSON, by the rules of `buf.validate` and by type."""

from base64 import b64encode
from collections.abc import Iterator
from math import isfinite
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.field_mask_pb2 import FieldMask

from postbus_runtime.fields import WRAPPERS, message_of
from shared.protojson import write_message

__all__ = ["KNOWN", "example_value", "is_null"]

_NULL: Final = "google.protobuf.NullValue"
_ANY: Final = "google.protobuf.Any"
_MASK: Final = "google.protobuf.FieldMask"
_IN_ANY: Final = "google.protobuf.Duration"
_UUID: Final = "01981f3a-7c00-7000-8000-000000000001"
_F = FieldDescriptor
_WIDE: Final = (_F.TYPE_INT64, _F.TYPE_SINT64, _F.TYPE_SFIXED64, _F.TYPE_UINT64, _F.TYPE_FIXED64)
KNOWN: Final[dict[str, Any]] = {
    "google.protobuf.Timestamp": "2026-01-15T09:30:00Z",
    "google.protobuf.Duration": "1.500s",
    "google.protobuf.Empty": {},
    "google.protobuf.Struct": {},
    "google.protobuf.ListValue": [],
    "google.protobuf.Value": "text",
    _MASK: "name",
    _ANY: {"@type": f"type.googleapis.com/{_IN_ANY}", "value": "1.500s"},
    **dict.fromkeys(WRAPPERS),
}
"""Examples of the messages of google.protobuf with a JSON form; a wrapper has that of its value."""


def is_null(field: FieldDescriptor) -> bool:
    """Return whether the only value of a field is null."""
    return field.enum_type is not None and field.enum_type.full_name == _NULL


def example_value(field: FieldDescriptor, rules: Any, text: str | None) -> Any:
    """Return an example of one value of a field that holds no message of a contract.

    `rules` is a buf.validate.FieldRules. `text` is the example of a string without rules. None if
    no example is known, or if the value is null.
    """
    kind = rules.WhichOneof("type")
    of_kind = getattr(rules, kind) if kind else None
    if field.message_type is not None and field.message_type.full_name in WRAPPERS:
        field = message_of(field).fields_by_name["value"]
    if field.message_type is not None:
        return _known(field.message_type, of_kind)
    if field.enum_type is not None:
        return None if is_null(field) else _enum_value(field.enum_type, rules.enum)
    given = next(_given(of_kind), None)
    if field.type == _F.TYPE_STRING:
        return (_UUID if rules.string.uuid else text) if given is None else given
    if field.type == _F.TYPE_BYTES:
        return _bytes(of_kind, given)
    if field.type == _F.TYPE_BOOL:
        return bool(given)
    return _number_as_json(field, _number(of_kind) if given is None else given)


def _given(rules: Any) -> Iterator[Any]:
    """Yield the values that the rules of a kind name: examples first."""
    names = ("example", "const", "in") if rules else ()
    for name in names:
        field = rules.DESCRIPTOR.fields_by_name.get(name)
        if field is not None and field.is_repeated:
            yield from getattr(rules, name)
        elif field is not None and rules.HasField(name):
            yield getattr(rules, name)


def _known(message: Descriptor, rules: Any) -> Any:
    """Return an example of a message of google.protobuf; None if it has no JSON form."""
    name, pool = message.full_name, message.file.pool
    given = next(_given(rules), None)
    if given is None:
        return KNOWN.get(name) if name != _ANY or _has(pool, _IN_ANY) else None
    if name == _ANY:
        return {"@type": given}
    return (
        FieldMask(paths=[given]).ToJsonString() if isinstance(given, str) else write_message(given)
    )


def _has(pool: DescriptorPool, message: str) -> bool:
    try:
        pool.FindMessageTypeByName(message)
    except KeyError:
        return False
    return True


def _enum_value(enum: EnumDescriptor, rules: Any) -> str | None:
    """Return the first allowed name, other than zero if there is another."""
    wanted = {rules.const} if rules.HasField("const") else set(getattr(rules, "in"))
    allowed = [
        value.name
        for value in enum.values
        if value.number not in rules.not_in and (not wanted or value.number in wanted)
    ]
    zero = enum.values_by_number[0].name
    return next((name for name in allowed if name != zero), next(iter(allowed), None))


def _bytes(rules: Any, given: bytes | None) -> str | None:
    """Return bytes that the rules name, or none at all if there are no rules."""
    if given is None and rules:
        return None
    return b64encode(given or b"").decode()


def _number(rules: Any) -> Any:
    """Return 1 if it keeps the bounds, or else the first of the values at and between them."""
    bounds = {each.name: value for each, value in rules.ListFields()} if rules else {}
    low, high = bounds.get("gte", bounds.get("gt")), bounds.get("lte", bounds.get("lt"))
    near = [1, low, high]
    near += [] if low is None else [low + 1]
    near += [] if high is None else [high - 1]
    near += [] if low is None or high is None else [(low + high) / 2]
    return next((each for each in near if each is not None and _is_within(each, bounds)), 1)


def _is_within(value: Any, bounds: dict[str, Any]) -> bool:
    return (
        value >= bounds.get("gte", value)
        and value <= bounds.get("lte", value)
        and ("gt" not in bounds or value > bounds["gt"])
        and ("lt" not in bounds or value < bounds["lt"])
        and value not in bounds.get("not_in", ())
    )


def _number_as_json(field: FieldDescriptor, number: Any) -> Any:
    if field.type in _WIDE or not isfinite(number):
        return str(number).replace("inf", "Infinity").replace("nan", "NaN")
    return number
