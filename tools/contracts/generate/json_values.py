"""JSON Schemas of single values in proto3 JSON (https://protobuf.dev/programming-guides/json).

A schema's `x-python` replaces it for datamodel-code-generator: the types of rest_types.py.
"""

from copy import deepcopy
from typing import Any, Final

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

__all__ = [
    "COMPONENTS",
    "INTEGER",
    "Schema",
    "enum_values",
    "known_value",
    "response_schema",
    "scalar",
    "select_variant",
    "wide_integer",
]

Schema = dict[str, Any]

_F = FieldDescriptor
_TYPES: Final = "postbus_runtime.rest_types"
_FLOAT_END: Final = 3.4028235677973366e38
"""The smallest number that rounds to infinity in 32 bits; a response may have 3.4028235e38."""
_BASE64: Final = "[A-Za-z0-9+/_-]"
_NOT_FINITE: Final = ["NaN", "Infinity", "-Infinity"]
INTEGER: Final = "^-?[0-9]+$"
"""Pattern of an integer in a JSON string; JSON Schema cannot bound its value."""
_FRACTION: Final = r"(?:\.[0-9]{1,6}0{0,3})?"
"""Pattern of the fraction of a second: whole microseconds, which the services represent."""
_FIELD: Final = r"[a-z][A-Za-z0-9]*(?:\.[a-z][A-Za-z0-9]*)*"


def _python(name: str, kind: str = "string", **keywords: Any) -> Schema:
    return {"type": kind, "customTypePath": f"{_TYPES}.{name}", **keywords}


def _int32(name: str, low: int, high: int) -> Schema:
    bounds = {"minimum": low, "maximum": high}
    return {
        "type": "integer",
        "format": name,
        **bounds,
        "x-python": _python("Integer", "integer", **bounds),
    }


def wide_integer(name: str, low: int, high: int) -> Schema:
    """Return the schema of a 64-bit integer: a string or a number from `low` to `high`."""
    return {
        "type": ["string", "integer"],
        "format": name,
        "description": f"An integer from {low} to {high}, as a string or a number. Responses have"
        " a string, because JavaScript's numbers hold 53 bits.",
        "pattern": INTEGER,
        "minimum": low,
        "maximum": high,
    }


def _float(name: str, bounds: Schema) -> Schema:
    return {
        "anyOf": [{"type": "number", "format": name, **bounds}, {"enum": list(_NOT_FINITE)}],
        "x-python": _python(name.capitalize(), "number"),
    }


_INT32: Final = _int32("int32", -(2**31), 2**31 - 1)
_UINT32: Final = _int32("uint32", 0, 2**32 - 1)
COMPONENTS: Final = {
    "Int64": wide_integer("int64", -(2**63), 2**63 - 1),
    "Uint64": wide_integer("uint64", 0, 2**64 - 1),
}
"""Schemas that many fields share, by the name of their component."""


def _reference(name: str) -> Schema:
    bounds = {key: COMPONENTS[name][key] for key in ("minimum", "maximum")}
    python = _python("WideInteger", "integer", **bounds)
    return {"$ref": f"#/components/schemas/{name}", "x-python": python}


_BYTES: Final = {
    "type": "string",
    "contentEncoding": "base64",
    "pattern": f"^(?:{_BASE64}{{4}})*(?:{_BASE64}{{2}}(?:==)?|{_BASE64}{{3}}=?)?$",
    "x-python": _python("Base64"),
}
_BOOL: Final = {
    "type": "boolean",
    "x-python": {"type": "boolean", "customTypePath": "pydantic.StrictBool"},
}
_STRING: Final = {"type": "string", "x-python": {"type": "string"}}
_DOUBLE: Final = _float("double", {})
_SINGLE: Final = _float("float", {"exclusiveMinimum": -_FLOAT_END, "exclusiveMaximum": _FLOAT_END})
_INT64: Final = _reference("Int64")
_UINT64: Final = _reference("Uint64")
_SCALARS: Final[dict[int, Schema]] = {
    _F.TYPE_BOOL: _BOOL,
    _F.TYPE_STRING: _STRING,
    _F.TYPE_BYTES: _BYTES,
    _F.TYPE_DOUBLE: _DOUBLE,
    _F.TYPE_FLOAT: _SINGLE,
    **dict.fromkeys((_F.TYPE_INT32, _F.TYPE_SINT32, _F.TYPE_SFIXED32), _INT32),
    **dict.fromkeys((_F.TYPE_UINT32, _F.TYPE_FIXED32), _UINT32),
    **dict.fromkeys((_F.TYPE_INT64, _F.TYPE_SINT64, _F.TYPE_SFIXED64), _INT64),
    **dict.fromkeys((_F.TYPE_UINT64, _F.TYPE_FIXED64), _UINT64),
}
_KNOWN: Final[dict[str, Schema]] = {
    "Timestamp": {
        "type": "string",
        "format": "date-time",
        "pattern": r"^[0-9]{4}-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]"
        rf"{_FRACTION}(?:Z|[+-][0-2][0-9]:[0-5][0-9])$",
        "x-python": _python("Time"),
    },
    "Duration": {
        "type": "string",
        "pattern": f"^-?[0-9]{{1,12}}{_FRACTION}s$",
        "x-python": _python("Duration"),
    },
    "FieldMask": {
        "type": "string",
        "pattern": f"^(?:{_FIELD}(?:,{_FIELD})*)?$",
        "x-python": _python("FieldMask"),
    },
    "Empty": {"type": "object", "additionalProperties": False},
    "Struct": {"type": "object"},
    "ListValue": {"type": "array", "items": {}},
    "Value": {},
    "BoolValue": _BOOL,
    "StringValue": _STRING,
    "BytesValue": _BYTES,
    "DoubleValue": _DOUBLE,
    "FloatValue": _SINGLE,
    "Int32Value": _INT32,
    "UInt32Value": _UINT32,
    "Int64Value": _INT64,
    "UInt64Value": _UINT64,
}


def scalar(field: FieldDescriptor) -> Schema:
    """Return the schema of a number, string, boolean or bytes in a request."""
    return deepcopy(_SCALARS[field.type])


def known_value(name: str) -> Schema | None:
    """Return the schema of a google.protobuf message with a JSON form of its own, else None."""
    found = _KNOWN.get(name.removeprefix("google.protobuf."))
    return None if found is None else deepcopy(found)


def enum_values(enum: EnumDescriptor) -> Schema:
    """Return the schema of an enum: the names of its values; `x-enum` is the enum itself."""
    if enum.full_name == "google.protobuf.NullValue":
        return {"type": "null"}
    names = [value.name for value in enum.values]
    python = {"type": "string", "enum": names}
    return {"type": "string", "enum": list(names), "x-enum": enum, "x-python": python}


_RESPONSES: Final[dict[str, Schema]] = {
    "Int64": {"type": "string", "format": "int64"},
    "Uint64": {"type": "string", "format": "uint64"},
}


def select_variant(schema: Any, *, python: bool) -> Any:
    """Return a schema for datamodel-code-generator (`python`) or for the documents."""
    if isinstance(schema, list):
        return [select_variant(each, python=python) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if python and "x-python" in schema:
        described = {key: schema[key] for key in ("description",) if key in schema}
        return select_variant(schema["x-python"], python=True) | described
    return {
        key: select_variant(value, python=python)
        for key, value in schema.items()
        if key != "x-python"
    }


def response_schema(schema: Schema) -> Schema:
    """Return the schema of a value in a response, which has the canonical form."""
    if "$ref" in schema:
        return dict(_RESPONSES[schema["$ref"].rpartition("/")[2]])
    return {key: value for key, value in schema.items() if key not in {"pattern"}}
