"""Rules on enums: names in JSON, numbers in binary messages."""

from collections.abc import Iterator

from google.protobuf.descriptor import EnumDescriptor, EnumValueDescriptor

from tools.contracts.compatibility.findings import Breaks, Change, bus, callers, json, readers
from tools.contracts.compatibility.surface import Pair

__all__ = ["ENUM_RULES"]


def _values_removed(pair: Pair[EnumDescriptor]) -> Iterator[Change]:
    """Yield removed enum values: requests with them are refused, old workers still send them."""
    kept = _names(pair.after)
    for number, names in _names(pair.before).items():
        if number not in kept:
            yield Change(
                name=f"{pair.after.full_name}.{names[0]}",
                kind="enum value removed",
                before=str(number),
                after="removed",
                breaks=lambda use: callers(use) or bus(use),
            )


def _values_renamed(pair: Pair[EnumDescriptor]) -> Iterator[Change]:
    """Yield renamed enum values: requests may have any alias, responses have the first name."""
    after = _names(pair.after)
    for number, names in _names(pair.before).items():
        kept = after.get(number, names)
        first, some = names[0] != kept[0], not set(names) <= set(kept)
        if first or some:
            yield Change(
                name=f"{pair.after.full_name}.{kept[0]}",
                kind="enum value renamed",
                before=", ".join(names),
                after=", ".join(kept),
                breaks=_breaks_names(first=first, some=some),
            )


def _breaks_names(*, first: bool, some: bool) -> Breaks:
    return lambda use: json(use) and (some if callers(use) else first)


def _values_added(pair: Pair[EnumDescriptor]) -> Iterator[Change]:
    """Yield new enum values, which are unknown to readers."""
    known = _names(pair.before)
    for number, names in _names(pair.after).items():
        if number not in known:
            yield Change(
                name=f"{pair.after.full_name}.{names[0]}",
                kind="enum value added",
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


ENUM_RULES = (_values_removed, _values_renamed, _values_added)
