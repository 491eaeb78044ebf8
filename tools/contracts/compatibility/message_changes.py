"""Rules on messages and fields: names in JSON, numbers in binary, types and presence."""

from collections.abc import Iterator
from typing import Final

from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
)
from google.protobuf.descriptor_pb2 import FieldDescriptorProto

from postbus_runtime.fields import is_map, oneof_of
from tools.contracts.compatibility.findings import (
    Breaks,
    Change,
    bus,
    every_use,
    json,
    json_callers,
    readers,
)
from tools.contracts.compatibility.surface import Pair

__all__ = ["FIELD_RULES", "MESSAGE_RULES", "same_type"]

_WELL_KNOWN = "google.protobuf."
_JSON_KINDS: Final = (
    {"int32", "sint32", "sfixed32"},
    {"uint32", "fixed32"},
    {"int64", "sint64", "sfixed64"},
    {"uint64", "fixed64"},
)
"""Types with the same proto3 JSON."""


def _fields_removed(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield removed fields: REST and WebSocket refuse them, the bus drops them."""
    for field in _removed(pair):
        if field.json_name not in {each.json_name for each in pair.after.fields}:
            yield Change(
                name=field.full_name, kind="field removed", before=_type(field), after="removed"
            )


def _fields_renumbered(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield fields with another number, which JSON does not contain."""
    names = {each.json_name: each for each in pair.after.fields}
    for field in _removed(pair):
        if field.json_name in names:
            yield Change(
                name=field.full_name,
                kind="number changed",
                before=str(field.number),
                after=str(names[field.json_name].number),
                breaks=bus,
            )


def _removed(pair: Pair[Descriptor]) -> list[FieldDescriptor]:
    kept = pair.after.fields_by_number
    return [field for field in pair.before.fields if field.number not in kept]


def _oneofs_extended(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield new members of oneofs, which are unknown to readers."""
    known = pair.before.fields_by_number
    for field in pair.after.fields:
        oneof = oneof_of(field)
        if oneof and field.number not in known and oneof.name in pair.before.oneofs_by_name:
            yield Change(
                name=field.full_name,
                kind=f"case added to oneof {oneof.name}",
                before="none",
                after=_type(field),
                breaks=readers,
                notice=True,
            )


def _renamed(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Yield renamed fields. JSON has JSON names; requests and field masks may have proto names."""
    before, after = pair.before, pair.after
    if before.json_name != after.json_name:
        yield _of_field(pair, "JSON name changed", before.json_name, after.json_name, json)
    elif before.name != after.name:
        yield _of_field(pair, "field renamed", before.name, after.name, json_callers)


def _type_changed(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Yield changed types: even if the bytes are compatible, values may change or be truncated."""
    if not same_type(pair):
        before, after = _scalar(pair.before), _scalar(pair.after)
        in_json = not any({before, after} <= kind for kind in _JSON_KINDS)
        breaks = every_use if in_json else bus
        yield _of_field(pair, "type changed", _type(pair.before), _type(pair.after), breaks)


def same_type(pair: Pair[FieldDescriptor]) -> bool:
    """Return whether two types are the same; messages and enums are compared by content."""
    before, after = pair.before, pair.after
    if before.type != after.type:
        return False
    well_known = [name for name in map(_type, (before, after)) if name.startswith(_WELL_KNOWN)]
    if well_known:
        return _type(before) == _type(after)
    return is_map(before) == is_map(after)


def _cardinality(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Yield a field that became repeated or singular."""
    if pair.before.is_repeated != pair.after.is_repeated:
        before, after = (
            "repeated" if field.is_repeated else "singular" for field in (pair.before, pair.after)
        )
        yield _of_field(pair, "cardinality changed", before, after, every_use)


def _presence_lost(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Yield lost presence: an unset field and its zero value become the same."""
    if pair.before.has_presence and not pair.after.has_presence and not pair.after.is_repeated:
        yield _of_field(pair, "presence lost", "optional", "always there", every_use)


def _presence_gained(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Yield gained presence: JSON may omit the field; binary never contained its zero value."""
    if pair.after.has_presence and not pair.before.has_presence and not pair.before.is_repeated:
        yield _of_field(
            pair,
            "presence gained",
            "always there",
            "optional",
            lambda use: json(use) and readers(use),
        )


def _oneof_changed(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Yield a change of the fields that exclude this one; the name of a oneof is never sent."""
    common = _siblings(pair.before).keys() & _siblings(pair.after).keys()
    before, after = (_excluding(field) & common for field in (pair.before, pair.after))
    if before != after:
        old, new = _names_of(pair.before, before), _names_of(pair.after, after)
        yield _of_field(pair, "oneof changed", old, new, every_use)


def _siblings(field: FieldDescriptor) -> dict[int, FieldDescriptor]:
    message = field.containing_type
    return {each.number: each for each in message.fields} if message else {}


def _names_of(field: FieldDescriptor, excluding: set[int]) -> str:
    siblings = _siblings(field)
    names = sorted(siblings[number].name for number in excluding)
    return f"excludes {', '.join(names)}" if names else "excludes none"


def _excluding(field: FieldDescriptor) -> set[int]:
    oneof = oneof_of(field)
    return {each.number for each in oneof.fields} - {field.number} if oneof else set()


def _scalar(field: FieldDescriptor) -> str:
    names = FieldDescriptorProto.Type.DESCRIPTOR.values_by_number
    return names[field.type].name.removeprefix("TYPE_").lower()


def _type(field: FieldDescriptor) -> str:
    if is_map(field):
        return "map"
    named = field.message_type or field.enum_type
    return named.full_name if named else _scalar(field)


def _of_field(
    pair: Pair[FieldDescriptor], kind: str, before: str, after: str, breaks: Breaks
) -> Change:
    return Change(name=pair.after.full_name, kind=kind, before=before, after=after, breaks=breaks)


MESSAGE_RULES = (_fields_removed, _fields_renumbered, _oneofs_extended)
FIELD_RULES = (
    _renamed,
    _type_changed,
    _cardinality,
    _presence_lost,
    _presence_gained,
    _oneof_changed,
)
