"""Read and write Struct, Value and ListValue: arbitrary JSON in a message."""

import math
from typing import Any, Final

from shared.bounds import MAX_ELEMENTS
from shared.errors import shown_name
from shared.protojson.refusal import Found, RefusedError, full, note
from shared.protojson.scalars import read_text

__all__ = ["read_list", "read_struct", "read_value", "write_list", "write_struct", "write_value"]

_MAX_LEVELS: Final = 20
"""Levels of a Value. Each one is up to four of the 100 levels that binary protobuf allows."""


def read_struct(document: Any) -> dict[str, Any]:
    """Return the document if it is valid; upb converts it."""
    if type(document) is not dict:
        raise RefusedError("type", "must be an object")
    _check(document, 1)
    return document


def read_list(document: Any) -> list[Any]:
    """Return the document if it is valid; upb converts it."""
    if type(document) is not list:
        raise RefusedError("type", "must be a list")
    _check(document, 1)
    return document


def read_value(document: Any) -> dict[str, Any]:
    """Return the fields of a Value."""
    _check(document, 1)
    if type(document) is dict:
        return {"struct_value": document}
    if type(document) is list:
        return {"list_value": document}
    if type(document) is str:
        return {"string_value": document}
    if type(document) is bool:
        return {"bool_value": document}
    return {"null_value": 0} if document is None else {"number_value": document}


def _check(value: Any, level: int) -> None:
    """Raise RefusedError for a value that is not JSON, too deep, or has too many elements."""
    if type(value) is dict or type(value) is list:
        if level > _MAX_LEVELS:
            raise RefusedError("nesting", f"must have at most {_MAX_LEVELS} levels")
        if len(value) > MAX_ELEMENTS:
            raise RefusedError("repeated.max_items", f"must have at most {MAX_ELEMENTS} elements")
        _check_each(value, level + 1)
    elif type(value) is str:
        read_text(value)
    elif type(value) is int or type(value) is float:
        if not math.isfinite(value):
            raise RefusedError("range", "must be a finite number")
    elif value is not None and type(value) is not bool:
        raise RefusedError("type", "must be a value of JSON")


def _check_each(container: Any, level: int) -> None:
    found: Found | None = None
    of_object = type(container) is dict
    for key, each in container.items() if of_object else enumerate(container):
        if type(each) is str and each.isascii() and not of_object:
            continue
        try:
            if of_object:
                read_text(key)
            _check(each, level)
        except RefusedError as refused:
            found = note(found, shown_name(str(key)) if of_object else f"[{key}]", refused)
            if full(found):
                break
    if found:
        raise RefusedError.all(found)


def write_struct(message: Any) -> dict[str, Any]:
    """Return a Struct as an object."""
    fields = message.fields
    return {name: write_value(fields[name]) for name in fields}


def write_list(message: Any) -> list[Any]:
    """Return a ListValue as a list."""
    return [write_value(each) for each in message.values]


def write_value(message: Any) -> Any:
    """Return a Value as JSON; ValueError for NaN and infinite numbers."""
    match message.WhichOneof("kind"):
        case "string_value":
            return message.string_value
        case "number_value":
            if not math.isfinite(message.number_value):
                raise ValueError("JSON cannot represent the number")
            return message.number_value
        case "bool_value":
            return message.bool_value
        case "struct_value":
            return write_struct(message.struct_value)
        case "list_value":
            return write_list(message.list_value)
    return None
