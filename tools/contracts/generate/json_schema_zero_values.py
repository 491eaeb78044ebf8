"""Rules of `buf.validate` that exclude or exempt the zero value, as JSON Schema."""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from tools.contracts.generate.json_schema_keywords import set_keywords
from tools.contracts.generate.json_values import Schema

__all__ = ["or_zero", "refuse_zero"]


def refuse_zero(schema: Schema, field: FieldDescriptor) -> None:
    """Exclude the zero value: `required` of a field without presence."""
    if field.has_presence:
        return
    kind = schema.get("type")
    if kind == "array":
        set_keywords(schema, minItems=max(1, schema.get("minItems", 0)))
    elif kind == "object":
        set_keywords(schema, minProperties=max(1, schema.get("minProperties", 0)))
    elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        set_keywords(schema, minLength=max(1, schema.get("minLength", 0)))
    elif field.type == FieldDescriptor.TYPE_BOOL:
        schema["const"] = True
    elif field.enum_type:
        zero = field.enum_type.values_by_number[0].name
        set_keywords(schema, enum=[name for name in schema["enum"] if name != zero])
    else:
        schema["not"] = {"enum": [0, "0"]}


def or_zero(schema: Schema, field: FieldDescriptor) -> Schema:
    """Return a schema that also takes the zero value, to which the rules do not apply."""
    zero: Any = {"array": [], "object": {}, "boolean": False}.get(str(schema.get("type")), 0)
    if field.enum_type and not field.is_repeated:
        zero = field.enum_type.values_by_number[0].name
    elif zero == 0 and zero is not False:
        text = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
        zero = "" if field.type in text else 0
    python = schema.pop("x-python", dict(schema))
    if zero == "" and schema.keys() <= {"type", "format", "pattern"} and "pattern" in schema:
        pattern = f"^$|{schema['pattern']}"
        return {"type": "string", "pattern": pattern, "x-python": _loose(python)}
    return {
        "anyOf": [schema, {"const": zero}],
        "x-python": _loose(python),
    }


def _loose(python: Schema) -> Schema:
    """Return only the type; protovalidate checks the rest."""
    return {key: python[key] for key in ("type", "customTypePath", "items") if key in python}
