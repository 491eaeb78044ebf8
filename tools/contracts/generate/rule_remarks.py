"""Descriptions of the rules of `buf.validate` that JSON Schema cannot express."""

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from postbus_runtime.fields import is_map
from postbus_runtime.options import enum_name
from shared.protojson import write_message
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.regular_expressions import WELL_KNOWN, is_portable

__all__ = ["field_remarks", "message_remarks"]

_VALUES: Final = {"const", "in", "not_in"}
_LOWER: Final = ("gt", "gte")
_UPPER: Final = ("lt", "lte")
_BOUNDS: Final = {*_LOWER, *_UPPER}
_NARROW: Final = ("int32", "sint32", "sfixed32", "uint32", "fixed32")
_EXPRESSED: Final[dict[str, set[str]]] = {
    "string": {
        *("min_len", "max_len", "len", "prefix", "suffix", "contains", *_VALUES),
        *WELL_KNOWN,
    },
    "bool": {"const"},
    "enum": {"defined_only", *_VALUES},
    "repeated": {"min_items", "max_items", "unique", "items"},
    "map": {"min_pairs", "max_pairs", "keys", "values"},
    "float": {"finite", *_BOUNDS},
    "double": {"finite", *_BOUNDS},
    **{kind: {*_BOUNDS, *_VALUES} for kind in _NARROW},
}
"""The rules of each kind that JSON Schema expresses exactly; of other kinds, none."""
_TEXTS: Final = {
    "lt": "must be less than {}",
    "lte": "must be at most {}",
    "gt": "must be greater than {}",
    "gte": "must be at least {}",
    "const": "must be {}",
    "in": "must be one of {}",
    "not_in": "must be none of {}",
    "min_len": "must have at least {} bytes",
    "max_len": "must have at most {} bytes",
    "len": "must have {} bytes",
    "min_bytes": "must have at least {} bytes in UTF-8",
    "max_bytes": "must have at most {} bytes in UTF-8",
    "len_bytes": "must have {} bytes in UTF-8",
    "pattern": "must match {} (RE2)",
    "prefix": "must begin with {}",
    "suffix": "must end with {}",
    "contains": "must contain {}",
    "not_contains": "must not contain {}",
    "lt_now": "must be in the past",
    "gt_now": "must be in the future",
    "within": "must be within {} of the present time",
}
_OPTIONS: Final = {"example", "strict"}
"""Members that are no rules of their own."""


def message_remarks(contracts: Contracts, message: Any) -> str:
    """Return a sentence with the rules of a whole message; "" if it has none."""
    rules = contracts.options.foreign(message, "buf.validate.message")
    if rules is None:
        return ""
    found = list(_expressions(rules))
    for each in rules.oneof:
        names = ", ".join(f"`{message.fields_by_name[name].json_name}`" for name in each.fields)
        least = "must" if each.required else "may"
        found.append(f"`message.oneof`: one of {names} {least} be set, and no other")
    return _sentence(found)


def field_remarks(contracts: Contracts, field: FieldDescriptor) -> str:
    """Return a sentence with the rules of a field that its schema does not express, or ""."""
    rules = contracts.rules(field)
    return "" if rules is None else _sentence(list(_of_field(contracts, rules, field)))


def _sentence(found: list[str]) -> str:
    return f"Further rules: {'; '.join(found)}." if found else ""


def _expressions(rules: Any) -> Iterator[str]:
    for rule in rules.cel:
        yield f"`{rule.id}`: {rule.message or f'`{rule.expression}`'}"
    for expression in rules.cel_expression:
        yield f"`{expression}`"


def _of_field(contracts: Contracts, rules: Any, field: FieldDescriptor) -> Iterator[str]:
    if enum_name(rules, "ignore") == "IGNORE_ALWAYS":
        return
    yield from _expressions(rules)
    kind = rules.WhichOneof("type")
    if kind is None:
        return
    of_kind = getattr(rules, kind)
    yield from _of_kind(contracts, of_kind, kind, _EXPRESSED.get(kind, set()))
    if kind == "repeated":
        yield from (f"each item {each}" for each in _of_field(contracts, of_kind.items, field))
    elif kind == "map" and is_map(field):
        yield from (f"each key {each}" for each in _of_keys(contracts, of_kind.keys, field))
        yield from (f"each value {each}" for each in _of_field(contracts, of_kind.values, field))


def _of_keys(contracts: Contracts, rules: Any, field: FieldDescriptor) -> Iterator[str]:
    """Yield the rules of keys: JSON Schema bounds the text of a key, but not its number."""
    kind = rules.WhichOneof("type")
    if kind in (None, "string"):
        yield from _of_field(contracts, rules, field)
    else:
        yield from _expressions(rules)
        yield from _of_kind(contracts, getattr(rules, kind), kind, set())


def _of_kind(contracts: Contracts, rules: Any, kind: str, expressed: set[str]) -> Iterator[str]:
    """Yield the rules of one kind, such as `int64`, whose names are not in `expressed`."""
    if _is_inverted(rules):  # the values outside a range are allowed
        expressed = expressed - _BOUNDS
    found = {field: value for field, value in rules.ListFields() if field.name not in _OPTIONS}
    shown = {
        field: value for field, value in found.items() if not _is_expressed(field, value, expressed)
    }
    bounds = [field.name for field in shown if field.name in _BOUNDS]
    for field, value in shown.items():
        text = _text(field, value)
        if field.is_extension:
            predefined = contracts.options.foreign(field, "buf.validate.predefined")
            yield from (f"`{each.id}`: {each.message or text}" for each in predefined.cel)
        elif field.name in _BOUNDS:
            yield f"`{kind}.{_bound_id(bounds, inverted=_is_inverted(rules))}`: {text}"
        else:
            yield f"`{kind}.{_id(field, value)}`: {text}"


def _is_expressed(field: FieldDescriptor, value: Any, expressed: set[str]) -> bool:
    if field.name == "pattern" and "min_len" in expressed:  # of a string
        return is_portable(value)
    return field.name in expressed and not field.is_extension


def _is_inverted(rules: Any) -> bool:
    known = {each.name for each in rules.DESCRIPTOR.fields}
    if not known >= _BOUNDS:
        return False
    low, high = ([name for name in names if rules.HasField(name)] for names in (_LOWER, _UPPER))
    if not low or not high:
        return False
    return bool(_order(getattr(rules, low[0])) > _order(getattr(rules, high[0])))


def _order(bound: Any) -> Any:
    is_number = isinstance(bound, int | float)
    return bound if is_number else (bound.seconds, bound.nanos)


def _id(field: FieldDescriptor, value: Any) -> str:
    """Return the last part of a rule's id: the name of the rule, and for an enum its value."""
    if field.enum_type is None:
        return field.name
    chosen = field.enum_type.values_by_number[value].name.lower()
    return f"{field.name}.{chosen.removeprefix('known_regex_http_')}"


def _bound_id(bounds: list[str], *, inverted: bool) -> str:
    """Return the id of bounds, as protovalidate forms it: `gte_lt`, or `gte_lt_exclusive`."""
    both = "_".join(name for name in (*_LOWER, *_UPPER) if name in bounds)
    return f"{both}_exclusive" if inverted and "_" in both else both


def _text(field: FieldDescriptor, value: Any) -> str:
    name = field.name
    if name in _TEXTS:
        return _TEXTS[name].format(_shown(field, value))
    return f"must be a valid {name.replace('_', ' ')}"


def _shown(field: FieldDescriptor, value: Any) -> str:
    if field.is_repeated:
        return ", ".join(_one(each) for each in value)
    return _one(value)


def _one(value: Any) -> str:
    if isinstance(value, Message):
        value = write_message(value)
    return f"`0x{value.hex()}`" if isinstance(value, bytes) else f"`{value}`"
