"""Rules on enums: JSON pairs values by name, binary messages pair them by number."""

from collections.abc import Iterator

from google.protobuf.descriptor import EnumDescriptor, EnumValueDescriptor
from google.protobuf.descriptor_pb2 import EnumDescriptorProto

from tools.contracts.compatibility.findings import Breaks, Change, bus, callers, json, readers
from tools.contracts.compatibility.kinds import Kind
from tools.contracts.compatibility.surface import Pair

__all__ = ["ENUM_RULES"]

_Names = dict[int, list[str]]
"""Names by number; the first name stands in responses, requests may have any."""


def _values_removed(pair: Pair[EnumDescriptor]) -> Iterator[Change]:
    """Yield removed values: requests with them are refused, old workers still send them."""
    after, kept = _names(pair.after), _numbers(pair.after)
    for number, names in _names(pair.before).items():
        if not kept.keys() & set(names) and not _new_names(pair, number):
            yield Change(
                name=f"{pair.after.full_name}.{names[0]}",
                kind=Kind.ENUM_VALUE_REMOVED,
                before=str(number),
                after="removed",
                breaks=_breaks_removed(number_reused=number in after),
            )


def _breaks_removed(*, number_reused: bool) -> Breaks:
    """A number that another value has is a finding of its own for the bus."""
    return lambda use: (json(use) and callers(use)) or (bus(use) and not number_reused)


def _values_renamed(pair: Pair[EnumDescriptor]) -> Iterator[Change]:
    """Yield renamed values: requests may have any alias, responses have the first name."""
    after, numbers = _names(pair.after), _numbers(pair.after)
    for number, names in _names(pair.before).items():
        kept = after[numbers[names[0]]] if names[0] in numbers else _new_names(pair, number)
        first, some = names[0] != (kept or names)[0], bool(set(names) - numbers.keys())
        if kept and (first or some):
            yield Change(
                name=f"{pair.after.full_name}.{kept[0]}",
                kind=Kind.ENUM_VALUE_RENAMED,
                before=", ".join(names),
                after=", ".join(kept),
                breaks=_breaks_names(first=first, some=some),
            )


def _breaks_names(*, first: bool, some: bool) -> Breaks:
    return lambda use: json(use) and (some if callers(use) else first)


def _numbers_changed(pair: Pair[EnumDescriptor]) -> Iterator[Change]:
    """Yield names with another number, and numbers with another name: on the bus both mislead."""
    after, numbers = _names(pair.after), _numbers(pair.after)
    for number, names in _names(pair.before).items():
        now = after.get(number, [])
        moved = [name for name in names if name in numbers]
        if set(names) & set(now) or not (moved or now):
            continue
        name = (moved or now)[0]
        yield Change(
            name=f"{pair.after.full_name}.{name}",
            kind=Kind.ENUM_NUMBER_CHANGED if moved else Kind.ENUM_NUMBER_REUSED,
            before=str(number) if moved else names[0],
            after=str(numbers[name]) if moved else name,
            breaks=bus,
        )


def _reserved_reused(pair: Pair[EnumDescriptor]) -> Iterator[Change]:
    """Yield new values with a reserved number or name, which earlier releases used otherwise."""
    reserved = EnumDescriptorProto()
    pair.before.CopyToProto(reserved)
    numbers = [range(each.start, each.end + 1) for each in reserved.reserved_range]
    for name, number in _numbers(pair.after).items():
        if any(number in each for each in numbers):
            yield _reused(pair, name, Kind.ENUM_NUMBER_REUSED, str(number), bus)
        if name in reserved.reserved_name:
            yield _reused(pair, name, Kind.NAME_REUSED, name, json)


def _reused(
    pair: Pair[EnumDescriptor], name: str, kind: Kind, reserved: str, breaks: Breaks
) -> Change:
    return Change(
        name=f"{pair.after.full_name}.{name}",
        kind=kind,
        before=f"reserved {reserved}",
        after=name,
        breaks=breaks,
    )


def _values_added(pair: Pair[EnumDescriptor]) -> Iterator[Change]:
    """Yield new values, which are unknown to readers."""
    numbers, names_before = _names(pair.before), _numbers(pair.before)
    for number, names in _names(pair.after).items():
        if number not in numbers and not names_before.keys() & set(names):
            yield Change(
                name=f"{pair.after.full_name}.{names[0]}",
                kind=Kind.ENUM_VALUE_ADDED,
                before="none",
                after=str(number),
                breaks=readers,
                notice=True,
            )


def _new_names(pair: Pair[EnumDescriptor], number: int) -> list[str]:
    """Return the names of a number after the change if none was a name of another value before."""
    names = _names(pair.after).get(number, [])
    before = _numbers(pair.before)
    return [] if any(before.get(name, number) != number for name in names) else names


def _names(enum: EnumDescriptor) -> _Names:
    names: _Names = {}
    value: EnumValueDescriptor
    for value in enum.values:
        names.setdefault(value.number, []).append(value.name)
    return names


def _numbers(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


ENUM_RULES = (
    _values_removed,
    _values_renamed,
    _numbers_changed,
    _reserved_reused,
    _values_added,
)
