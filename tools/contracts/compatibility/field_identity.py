"""Rules on the identity of fields: JSON pairs them by name, binary messages pair them by number."""

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

from postbus_runtime.fields import is_map
from tools.contracts.compatibility.findings import Breaks, Change, bus, every_use, json
from tools.contracts.compatibility.kinds import Kind
from tools.contracts.compatibility.surface import Pair

__all__ = ["IDENTITY_RULES", "paired_fields", "scalar_name", "type_name"]


def paired_fields(pair: Pair[Descriptor]) -> Iterator[tuple[Pair[FieldDescriptor], Breaks]]:
    """Yield the fields of both messages that an audience takes for the same, with the audience.

    JSON pairs fields by JSON name, the bus pairs them by number.
    """
    for field in pair.before.fields:
        by_name, by_number = _counterparts(field, pair.after)
        if by_name is not None and by_number is not None and by_name.number == by_number.number:
            yield pair.of(field, by_name), every_use
            continue
        if by_name is not None:
            yield pair.of(field, by_name), json
        if by_number is not None:
            yield pair.of(field, by_number), bus


def _counterparts(
    field: FieldDescriptor, message: Descriptor
) -> tuple[FieldDescriptor | None, FieldDescriptor | None]:
    """Return the fields of `message` with the JSON name and with the number of a field."""
    named = [each for each in message.fields if each.json_name == field.json_name]
    return (named[0] if named else None), message.fields_by_number.get(field.number)


def _fields_removed(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield removed fields: REST and WebSocket refuse them, the bus drops them."""
    known = {each.json_name for each in pair.before.fields}
    for field in pair.before.fields:
        by_name, by_number = _counterparts(field, pair.after)
        if by_name is not None:
            continue
        if by_number is None or by_number.json_name in known:
            yield Change(
                name=field.full_name,
                kind=Kind.FIELD_REMOVED,
                before=type_name(field),
                after="removed",
                breaks=every_use if by_number is None else json,
            )


def _numbers_changed(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield fields with another number, and numbers of other fields: the bus takes one for another.

    A field that keeps its name or its JSON name is the same field.
    """
    for field in pair.before.fields:
        by_name, by_number = _counterparts(field, pair.after)
        if by_name is not None and by_name.number != field.number:
            yield Change(
                name=by_name.full_name,
                kind=Kind.NUMBER_CHANGED,
                before=str(field.number),
                after=str(by_name.number),
                breaks=bus,
            )
        elif by_name is None and by_number is not None and by_number.name != field.name:
            yield Change(
                name=by_number.full_name,
                kind=Kind.NUMBER_REUSED,
                before=field.name,
                after=by_number.name,
                breaks=bus,
            )


def _json_names_changed(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield fields with another JSON name, unless another field had that name before."""
    known = {each.json_name for each in pair.before.fields}
    for field in pair.before.fields:
        by_name, by_number = _counterparts(field, pair.after)
        if by_name is None and by_number is not None and by_number.json_name not in known:
            yield Change(
                name=by_number.full_name,
                kind=Kind.JSON_NAME_CHANGED,
                before=field.json_name,
                after=by_number.json_name,
                breaks=json,
            )


def _reserved_reused(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield new fields with a reserved number or name, which earlier releases used otherwise."""
    reserved = DescriptorProto()
    pair.before.CopyToProto(reserved)
    numbers = [range(each.start, each.end) for each in reserved.reserved_range]
    for field in pair.after.fields:
        if any(field.number in each for each in numbers):
            yield _reused(field, Kind.NUMBER_REUSED, str(field.number), bus)
        if field.name in reserved.reserved_name:
            yield _reused(field, Kind.NAME_REUSED, field.name, json)


def _reused(field: FieldDescriptor, kind: Kind, reserved: str, breaks: Breaks) -> Change:
    return Change(
        name=field.full_name,
        kind=kind,
        before=f"reserved {reserved}",
        after=field.name,
        breaks=breaks,
    )


def scalar_name(field: FieldDescriptor) -> str:
    """Return the type of a field as in .proto files: `int32`, `message`, `enum`."""
    names = FieldDescriptorProto.Type.DESCRIPTOR.values_by_number
    return names[field.type].name.removeprefix("TYPE_").lower()


def type_name(field: FieldDescriptor) -> str:
    """Return the type of a field, `map`, or the full name of its message or enum."""
    if is_map(field):
        return "map"
    named = field.message_type or field.enum_type
    return named.full_name if named else scalar_name(field)


IDENTITY_RULES = (_fields_removed, _numbers_changed, _json_names_changed, _reserved_reused)
