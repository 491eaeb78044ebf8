"""Rules on messages, fields and enums: names in JSON, numbers in binary, types and presence."""

from collections.abc import Iterator
from typing import Final

from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    EnumValueDescriptor,
    FieldDescriptor,
    OneofDescriptor,
)
from google.protobuf.descriptor_pb2 import FieldDescriptorProto

from tools.contracts.compatibility.findings import (
    Breaks,
    Change,
    anyone,
    bus,
    callers,
    json,
    json_callers,
    readers,
)
from tools.contracts.compatibility.surface import Pair

__all__ = ["ENUM_RULES", "FIELD_RULES", "MESSAGE_RULES", "is_map", "real_oneof", "same_type"]

_WELL_KNOWN = "google.protobuf."
_JSON_KINDS: Final = (
    {"int32", "sint32", "sfixed32"},
    {"uint32", "fixed32"},
    {"int64", "sint64", "sfixed64"},
    {"uint64", "fixed64"},
)
"""Types that proto3 JSON writes alike."""


def _fields_removed(pair: Pair[Descriptor]) -> Iterator[Change]:
    """REST and WebSocket refuse what they don't know, the bus drops it; readers miss it."""
    for field in _gone(pair):
        if field.json_name not in {each.json_name for each in pair.after.fields}:
            yield Change(
                name=field.full_name, what="field removed", before=_type(field), after="gone"
            )


def _fields_renumbered(pair: Pair[Descriptor]) -> Iterator[Change]:
    """JSON does not notice."""
    names = {each.json_name: each for each in pair.after.fields}
    for field in _gone(pair):
        if field.json_name in names:
            yield Change(
                name=field.full_name,
                what="number changed",
                before=str(field.number),
                after=str(names[field.json_name].number),
                breaks=bus,
            )


def _gone(pair: Pair[Descriptor]) -> list[FieldDescriptor]:
    kept = pair.after.fields_by_number
    return [field for field in pair.before.fields if field.number not in kept]


def _oneofs_extended(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Readers meet a case that they don't know."""
    known = pair.before.fields_by_number
    for field in pair.after.fields:
        oneof = real_oneof(field)
        if oneof and field.number not in known and oneof.name in pair.before.oneofs_by_name:
            yield Change(
                name=field.full_name,
                what=f"case added to oneof {oneof.name}",
                before="none",
                after=_type(field),
                breaks=readers,
                notice=True,
            )


def _renamed(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """JSON carries names. A caller's JSON and its field masks may also use the field's own."""
    before, after = pair.before, pair.after
    if before.json_name != after.json_name:
        yield _of_field(pair, "JSON name changed", before.json_name, after.json_name, json)
    elif before.name != after.name:
        yield _of_field(pair, "field renamed", before.name, after.name, json_callers)


def _type_changed(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Even where the bytes fit, values are cut or read otherwise, and JSON differs."""
    if not same_type(pair):
        before, after = _scalar(pair.before), _scalar(pair.after)
        in_json = not any({before, after} <= kind for kind in _JSON_KINDS)
        breaks = anyone if in_json else bus
        yield _of_field(pair, "type changed", _type(pair.before), _type(pair.after), breaks)


def same_type(pair: Pair[FieldDescriptor]) -> bool:
    """Whether the values can be the same; messages and enums are compared by their content."""
    before, after = pair.before, pair.after
    if before.type != after.type:
        return False
    well_known = [name for name in map(_type, (before, after)) if name.startswith(_WELL_KNOWN)]
    if well_known:
        return _type(before) == _type(after)
    return is_map(before) == is_map(after)


def _cardinality(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """One became many, or many one."""
    if pair.before.is_repeated != pair.after.is_repeated:
        before, after = (
            "repeated" if field.is_repeated else "singular" for field in (pair.before, pair.after)
        )
        yield _of_field(pair, "cardinality changed", before, after, anyone)


def _presence_lost(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Absent and zero become the same: what a caller left out, what a reader took for absent."""
    if pair.before.has_presence and not pair.after.has_presence and not pair.after.is_repeated:
        yield _of_field(pair, "presence lost", "optional", "always there", anyone)


def _presence_gained(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """JSON leaves out what it always had; in binary, zero was never written."""
    if pair.after.has_presence and not pair.before.has_presence and not pair.before.is_repeated:
        yield _of_field(
            pair,
            "presence gained",
            "always there",
            "optional",
            lambda use: json(use) and readers(use),
        )


def _oneof_changed(pair: Pair[FieldDescriptor]) -> Iterator[Change]:
    """Another field excludes this one, or excludes it no more. A oneof's name is nowhere sent."""
    common = _siblings(pair.before).keys() & _siblings(pair.after).keys()
    before, after = (_rivals(field) & common for field in (pair.before, pair.after))
    if before != after:
        old, new = _names_of(pair.before, before), _names_of(pair.after, after)
        yield _of_field(pair, "oneof changed", old, new, anyone)


def _siblings(field: FieldDescriptor) -> dict[int, FieldDescriptor]:
    message = field.containing_type
    return {each.number: each for each in message.fields} if message else {}


def _names_of(field: FieldDescriptor, rivals: set[int]) -> str:
    siblings = _siblings(field)
    names = sorted(siblings[number].name for number in rivals)
    return f"excludes {', '.join(names)}" if names else "excludes none"


def real_oneof(field: FieldDescriptor) -> OneofDescriptor | None:
    """Return the oneof of a field; None for that which `optional` makes."""
    oneof = field.containing_oneof
    return None if oneof is None or oneof.name == f"_{field.name}" else oneof


def _rivals(field: FieldDescriptor) -> set[int]:
    oneof = real_oneof(field)
    return {each.number for each in oneof.fields} - {field.number} if oneof else set()


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def _scalar(field: FieldDescriptor) -> str:
    names = FieldDescriptorProto.Type.DESCRIPTOR.values_by_number
    return names[field.type].name.removeprefix("TYPE_").lower()


def _type(field: FieldDescriptor) -> str:
    if is_map(field):
        return "map"
    named = field.message_type or field.enum_type
    return named.full_name if named else _scalar(field)


def _of_field(
    pair: Pair[FieldDescriptor], what: str, before: str, after: str, breaks: Breaks
) -> Change:
    return Change(name=pair.after.full_name, what=what, before=before, after=after, breaks=breaks)


def _values_removed(pair: Pair[EnumDescriptor]) -> Iterator[Change]:
    """Callers that send it are refused; on the bus, those of before still answer it."""
    kept = _names(pair.after)
    for number, names in _names(pair.before).items():
        if number not in kept:
            yield Change(
                name=f"{pair.after.full_name}.{names[0]}",
                what="enum value removed",
                before=str(number),
                after="gone",
                breaks=lambda use: callers(use) or bus(use),
            )


def _values_renamed(pair: Pair[EnumDescriptor]) -> Iterator[Change]:
    """JSON carries names: a caller may send every alias, a reader gets the first."""
    after = _names(pair.after)
    for number, names in _names(pair.before).items():
        kept = after.get(number, names)
        first, some = names[0] != kept[0], not set(names) <= set(kept)
        if first or some:
            yield Change(
                name=f"{pair.after.full_name}.{kept[0]}",
                what="enum value renamed",
                before=", ".join(names),
                after=", ".join(kept),
                breaks=_who_sees(first=first, some=some),
            )


def _who_sees(*, first: bool, some: bool) -> Breaks:
    return lambda use: json(use) and (some if callers(use) else first)


def _values_added(pair: Pair[EnumDescriptor]) -> Iterator[Change]:
    """Readers meet a value that they don't know."""
    known = _names(pair.before)
    for number, names in _names(pair.after).items():
        if number not in known:
            yield Change(
                name=f"{pair.after.full_name}.{names[0]}",
                what="enum value added",
                before="none",
                after=str(number),
                breaks=readers,
                notice=True,
            )


def _names(enum: EnumDescriptor) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    value: EnumValueDescriptor
    for value in enum.values:
        names.setdefault(value.number, []).append(value.name)
    return names


MESSAGE_RULES = (_fields_removed, _fields_renumbered, _oneofs_extended)
FIELD_RULES = (
    _renamed,
    _type_changed,
    _cardinality,
    _presence_lost,
    _presence_gained,
    _oneof_changed,
)
ENUM_RULES = (_values_removed, _values_renamed, _values_added)
