"""Rules on fields: names, types, presence and oneofs."""

from collections.abc import Iterator
from typing import Final

from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
)

from postbus_runtime.fields import WRAPPERS, is_map, oneof_of
from tools.contracts.compatibility.field_identity import (
    IDENTITY_RULES,
    scalar_name,
    type_name,
)
from tools.contracts.compatibility.findings import (
    Breaks,
    Change,
    bus,
    every_use,
    json,
    json_callers,
    readers,
)
from tools.contracts.compatibility.kinds import Kind
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


def _oneofs_extended(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield new members of oneofs, which are unknown to readers."""
    numbers = pair.before.fields_by_number
    names = {each.json_name for each in pair.before.fields}
    for field in pair.after.fields:
        oneof, known = oneof_of(field), field.number in numbers or field.json_name in names
        if oneof and not known and oneof.name in pair.before.oneofs_by_name:
            yield Change(
                name=field.full_name,
                kind=Kind.ONEOF_EXTENDED,
                detail=oneof.name,
                before="none",
                after=type_name(field),
                breaks=readers,
                notice=True,
            )


def _renamed(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Yield renamed fields with the same JSON name: requests and masks may have proto names."""
    before, after = pair.before, pair.after
    if before.json_name == after.json_name and before.name != after.name:
        yield _of_field(pair, Kind.FIELD_RENAMED, before.name, after.name, json_callers)


def _output_only(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Yield a field that is now OUTPUT_ONLY: the gateway ignores it in requests (AIP-203)."""
    name = "OUTPUT_ONLY"
    if name in pair.new.behaviors(pair.after) and name not in pair.old.behaviors(pair.before):
        yield _of_field(pair, Kind.OUTPUT_ONLY_ADDED, "writable", name, json_callers)


def _type_changed(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Yield changed types: even if the bytes are compatible, values may change or be truncated."""
    if not same_type(pair):
        before, after = type_name(pair.before), type_name(pair.after)
        breaks = bus if _same_json(pair) else every_use
        yield _of_field(pair, Kind.TYPE_CHANGED, before, after, breaks)


def _same_json(pair: Pair[FieldDescriptor]) -> bool:
    scalars = {_json_scalar(pair.before), _json_scalar(pair.after)}
    if len(scalars) == 1:
        return scalars != {"message"}
    return any(scalars <= kind for kind in _JSON_KINDS)


def same_type(pair: Pair[FieldDescriptor]) -> bool:
    """Return whether two types are the same; messages and enums are compared by content."""
    before, after = pair.before, pair.after
    if before.type != after.type:
        return False
    well_known = [name for name in map(type_name, (before, after)) if name.startswith(_WELL_KNOWN)]
    if well_known:
        return type_name(before) == type_name(after)
    return is_map(before) == is_map(after)


def _cardinality(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Yield a field that became repeated or singular."""
    if pair.before.is_repeated != pair.after.is_repeated:
        before, after = (
            "repeated" if field.is_repeated else "singular" for field in (pair.before, pair.after)
        )
        yield _of_field(pair, Kind.CARDINALITY_CHANGED, before, after, every_use)


def _presence_lost(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Yield lost presence: an unset field and its zero value become the same."""
    if pair.before.has_presence and not pair.after.has_presence and not pair.after.is_repeated:
        yield _of_field(pair, Kind.PRESENCE_LOST, "optional", "always there", every_use)


def _presence_gained(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Yield gained presence: JSON may omit the field; binary never contained its zero value."""
    if pair.after.has_presence and not pair.before.has_presence and not pair.before.is_repeated:
        yield _of_field(
            pair,
            Kind.PRESENCE_GAINED,
            "always there",
            "optional",
            lambda use: json(use) and readers(use),
        )


def _oneof_changed(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Yield a change of the fields that exclude this one; the name of a oneof is never sent."""
    common = _siblings(pair.before) & _siblings(pair.after)
    before, after = (_excluding(field) & common for field in (pair.before, pair.after))
    if before != after:
        yield _of_field(pair, Kind.ONEOF_CHANGED, _excludes(before), _excludes(after), every_use)


def _siblings(field: FieldDescriptor) -> set[str]:
    message = field.containing_type
    return {each.json_name for each in message.fields} if message else set()


def _excludes(names: set[str]) -> str:
    return f"excludes {', '.join(sorted(names)) or 'none'}"


def _excluding(field: FieldDescriptor) -> set[str]:
    oneof = oneof_of(field)
    return {each.json_name for each in oneof.fields} - {field.json_name} if oneof else set()


def _json_scalar(field: FieldDescriptor) -> str:
    """Return the type of a field in JSON: a wrapper has the JSON of its value."""
    message = field.message_type
    if message is not None and message.full_name in WRAPPERS:
        field = message.fields_by_name["value"]
    return scalar_name(field)


def _of_field(
    pair: Pair[FieldDescriptor], kind: Kind, before: str, after: str, breaks: Breaks
) -> Change:
    return Change(name=pair.after.full_name, kind=kind, before=before, after=after, breaks=breaks)


MESSAGE_RULES = (*IDENTITY_RULES, _oneofs_extended)
FIELD_RULES = (
    _renamed,
    _output_only,
    _type_changed,
    _cardinality,
    _presence_lost,
    _presence_gained,
    _oneof_changed,
)
