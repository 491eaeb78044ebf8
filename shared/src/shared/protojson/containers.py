"""Read objects, lists and maps. Their readers continue after a violation, up to the 21st."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from shared.bounds import max_elements, over_bound
from shared.errors import shown_name
from shared.protojson.refusal import Found, RefusedError, full, note
from shared.protojson.scalars import NULL_VALUE, Read, scalar_reader

__all__ = ["list_reader", "map_reader", "object_reader", "takes_null"]


def object_reader(kind: Descriptor, readers: Mapping[str, Read]) -> Read:
    """Return the reader of a message type with the ordinary JSON; `readers` by field name."""
    table: dict[str, tuple[str, str, Read, bool]] = {}
    for names in ("name", "json_name"):
        for field in kind.fields:
            entry = (field.name, field.json_name, readers[field.name], takes_null(field))
            table[getattr(field, names)] = entry
    get = table.get
    oneofs = [oneof for oneof in kind.oneofs if len(oneof.fields) > 1]

    def read(document: Any) -> dict[str, Any]:
        if type(document) is not dict:
            raise RefusedError("type", "must be an object")
        values: dict[str, Any] = {}
        found: Found | None = None
        for key, value in document.items():
            member = get(key)
            try:
                if member is None:
                    raise RefusedError("unknown_field", "no such field")
                if value is not None or member[3]:
                    values[member[0]] = member[2](value)
            except RefusedError as refused:
                found = note(found, shown_name(key) if member is None else member[1], refused)
                if full(found):
                    break
        if len(values) != len(document):
            found = _duplicates(found, [get(key) for key in document])
        for oneof in oneofs:
            found = _check_oneof(found, oneof, values)
        if found:
            raise RefusedError.all(found)
        return values

    return read


def list_reader(field: FieldDescriptor, read_one: Read) -> Read:
    """Return the reader of a repeated field; `read_one` reads an element."""
    limit, (rule, message) = max_elements(field), over_bound(field)

    def read(document: Any) -> list[Any]:
        if type(document) is not list:
            raise RefusedError("type", "must be a list")
        if len(document) > limit:
            raise RefusedError(rule, message)
        values: list[Any] = []
        found: Found | None = None
        for index, each in enumerate(document):
            try:
                values.append(read_one(each))
            except RefusedError as refused:
                found = note(found, f"[{index}]", refused)
                if full(found):
                    break
        if found:
            raise RefusedError.all(found)
        return values

    return read


def map_reader(field: FieldDescriptor, read_one: Read) -> Read:
    """Return the reader of a map; `read_one` reads a value."""
    key_field = field.message_type.fields_by_name["key"]  # type: ignore[union-attr]  # a map's entry
    read_key = _key_reader(key_field)
    limit, (rule, message) = max_elements(field), over_bound(field)
    quoted = key_field.type == FieldDescriptor.TYPE_STRING

    def read(document: Any) -> dict[Any, Any]:
        if type(document) is not dict:
            raise RefusedError("type", "must be an object")
        if len(document) > limit:
            raise RefusedError(rule, message)
        values: dict[Any, Any] = {}
        found: Found | None = None
        for name, each in document.items():
            try:
                key = read_key(name)
                if key in values:
                    raise RefusedError("duplicate", "given more than once")
                values[key] = read_one(each)
            except RefusedError as refused:
                shown = shown_name(name)
                found = note(found, f'["{shown}"]' if quoted else f"[{shown}]", refused)
                if full(found):
                    break
        if found:
            raise RefusedError.all(found)
        return values

    return read


def takes_null(field: FieldDescriptor) -> bool:
    """Return whether null is a value of the field; for other fields null means "unset"."""
    if field.is_repeated:
        return False
    if field.enum_type is not None:
        return field.enum_type.full_name == NULL_VALUE
    return (
        field.message_type is not None and field.message_type.full_name == "google.protobuf.Value"
    )


def _key_reader(field: FieldDescriptor) -> Read:
    """Return the reader of the keys of a map, which are strings in JSON."""
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _read_bool_key
    return scalar_reader(field)


def _read_bool_key(name: str) -> bool:
    if name in ("true", "false"):
        return name == "true"
    raise RefusedError("type", "must be true or false")


def _duplicates(found: Found | None, members: list[Any]) -> Found | None:
    """Return `found` with the fields that occur under both of their names, also with null."""
    seen: set[str] = set()
    for member in filter(None, members):
        if member[0] in seen:
            found = note(found, member[1], RefusedError("duplicate", "given more than once"))
        seen.add(member[0])
    return found


def _check_oneof(found: Found | None, oneof: Any, values: dict[str, Any]) -> Found | None:
    given = [field.json_name for field in oneof.fields if field.name in values]
    if len(given) < 2:
        return found
    refused = RefusedError("oneof", f"only one of {oneof.name} may be set: {' or '.join(given)}")
    return (found or []) + refused.found
