"""Output-only fields in requests (AIP-203): their values are ignored."""

from collections.abc import Callable
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from postbus.contract import CONTRACT
from shared.bounds import is_map

__all__ = ["is_output_only", "remover"]

Remove = Callable[[Any], None]


@cache
def is_output_only(field: FieldDescriptor) -> bool:
    """Return whether google.api.field_behavior of a field includes OUTPUT_ONLY."""
    return "OUTPUT_ONLY" in CONTRACT.options.behaviors(field)


@cache
def remover(kind: Descriptor) -> Remove | None:
    """Return a function that clears the output-only fields of a message, at every depth.

    None for a type without such fields.
    """
    if not _has_output_only(kind, set()):
        return None
    cleared = [field.name for field in kind.fields if is_output_only(field)]
    inner = [
        (field, value)
        for field in kind.fields
        if not is_output_only(field) and (value := _message_of(field)) is not None
    ]

    def remove(message: Any) -> None:
        for name in cleared:
            message.ClearField(name)
        for field, value in inner:
            remove_inner = remover(value)  # found later: the type may be recursive
            if remove_inner is not None:
                for each in _values(field, message):
                    remove_inner(each)

    return remove


def _message_of(field: FieldDescriptor) -> Descriptor | None:
    """Return the message type of a field's values that has output-only fields."""
    value = field
    if is_map(field) and field.message_type is not None:
        value = field.message_type.fields_by_name["value"]
    kind = value.message_type
    return kind if kind is not None and _has_output_only(kind, set()) else None


def _values(field: FieldDescriptor, message: Any) -> Any:
    if not field.is_repeated:
        return [getattr(message, field.name)] if message.HasField(field.name) else ()
    values = getattr(message, field.name)
    return values.values() if is_map(field) else values


def _has_output_only(kind: Descriptor, seen: set[str]) -> bool:
    if kind.full_name in seen:
        return False
    seen.add(kind.full_name)
    return any(
        is_output_only(field)
        or (field.message_type is not None and _has_output_only(field.message_type, seen))
        for field in kind.fields
    )
