"""The rules of `buf.validate` as JSON Schema.

Rules that JSON Schema cannot express (CEL, lengths in bytes, limits of times) are missing in the
documents; the gateway and the worker enforce every rule.
"""

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from postbus_runtime.fields import is_map, value_of
from postbus_runtime.options import enum_name
from shared.bounds import MAX_ELEMENTS
from tools.contracts.generate.json_schema_keywords import set_keywords, set_values
from tools.contracts.generate.json_schema_numbers import constrain_number
from tools.contracts.generate.json_schema_zero_values import or_zero, refuse_zero
from tools.contracts.generate.json_values import Schema
from tools.contracts.generate.regular_expressions import (
    FORMATS,
    WELL_KNOWN,
    escaped,
    is_portable,
    literal,
)

__all__ = ["constrain", "set_formats"]


def constrain(schema: Schema, rules: Any, field: FieldDescriptor) -> Schema:
    """Return the schema of a field's value with its rules, a buf.validate.FieldRules."""
    _bound(schema, field)
    ignore = enum_name(rules, "ignore")
    if ignore == "IGNORE_ALWAYS":
        return schema
    kind = rules.WhichOneof("type")
    if kind is not None:
        apply = _BY_KIND.get(kind, constrain_number)
        apply(schema, getattr(rules, kind), field)
    if rules.required:
        refuse_zero(schema, field)
    if ignore == "IGNORE_IF_ZERO_VALUE" and not field.has_presence:
        return or_zero(schema, field)
    return schema


def set_formats(schema: Schema, rules: Any) -> Schema:
    """Return the schema of a field of a response with its formats, such as `uuid`."""
    if enum_name(rules, "ignore") == "IGNORE_UNSPECIFIED":
        well_known = rules.string.WhichOneof("well_known")
        if well_known in FORMATS:
            schema["format"] = FORMATS[well_known]
        if rules.WhichOneof("type") == "repeated":
            set_formats(schema["items"], rules.repeated.items)
    return schema


def _bound(schema: Schema, field: FieldDescriptor) -> None:
    """Bound lists and maps, for which the contract may have no bound of its own."""
    if is_map(field):
        set_keywords(schema, maxProperties=MAX_ELEMENTS)
    elif field.is_repeated and schema.get("type") == "array":
        set_keywords(schema, maxItems=MAX_ELEMENTS)


def _copy(schema: Schema, rules: Any, **names: str) -> None:
    set_keywords(
        schema, **{names[rule]: getattr(rules, rule) for rule in names if rules.HasField(rule)}
    )


def _string(schema: Schema, rules: Any, _field: FieldDescriptor) -> None:
    _copy(schema, rules, max_bytes="maxLength")  # no character is shorter than a byte
    _copy(schema, rules, min_len="minLength", max_len="maxLength")
    if rules.HasField("len"):
        set_keywords(schema, minLength=rules.len, maxLength=rules.len)
    well_known = rules.WhichOneof("well_known")
    if well_known in FORMATS:
        schema["format"] = FORMATS[well_known]
    patterns = [WELL_KNOWN[well_known]] if well_known in WELL_KNOWN else []
    if rules.pattern:
        schema["x-python"]["pattern"] = rules.pattern
        patterns += [rules.pattern] if is_portable(rules.pattern) else []
    patterns += [f"^{literal(rules.prefix)}"] if rules.prefix else []
    patterns += [f"{literal(rules.suffix)}$"] if rules.suffix else []
    patterns += [literal(rules.contains)] if rules.contains else []
    if patterns:
        schema["pattern"] = escaped(patterns[0])
        schema["x-python"].setdefault("pattern", patterns[0])
    if patterns[1:]:
        schema["allOf"] = [{"pattern": escaped(pattern)} for pattern in patterns[1:]]
    set_values(schema, rules)


def _bool(schema: Schema, rules: Any, _field: FieldDescriptor) -> None:
    if rules.HasField("const"):
        schema["const"] = rules.const


def _enum(schema: Schema, rules: Any, field: FieldDescriptor) -> None:
    values = value_of(field).enum_type.values  # type: ignore[union-attr]  # it has rules of an enum
    wanted = {rules.const} if rules.HasField("const") else set(getattr(rules, "in"))
    names = [
        value.name
        for value in values
        if (not wanted or value.number in wanted) and value.number not in rules.not_in
    ]
    set_keywords(schema, enum=names)


def _repeated(schema: Schema, rules: Any, field: FieldDescriptor) -> None:
    _copy(schema, rules, min_items="minItems", max_items="maxItems")
    if rules.unique:
        schema["uniqueItems"] = True
    schema["items"] = constrain(schema["items"], rules.items, field)


def _map(schema: Schema, rules: Any, field: FieldDescriptor) -> None:
    _copy(schema, rules, min_pairs="minProperties", max_pairs="maxProperties")
    if rules.keys.WhichOneof("type") == "string":
        schema["propertyNames"] = constrain(schema["propertyNames"], rules.keys, field)
    schema["additionalProperties"] = constrain(
        schema["additionalProperties"], rules.values, value_of(field)
    )


def _bytes(schema: Schema, rules: Any, _field: FieldDescriptor) -> None:
    """Set the lengths of the base64 text: three bytes are four characters, padding is optional."""
    longest = rules.len if rules.HasField("len") else rules.max_len
    if rules.HasField("len") or rules.HasField("max_len"):
        schema["maxLength"] = -(-longest // 3) * 4
    shortest = rules.len if rules.HasField("len") else rules.min_len
    if shortest:
        schema["minLength"] = -(-shortest * 4 // 3)


def _inexpressible(_schema: Schema, _rules: Any, _field: FieldDescriptor) -> None:
    """Leave out the rules of times, masks and Any, which JSON Schema cannot express."""


_BY_KIND: Final[dict[str, Callable[[Schema, Any, FieldDescriptor], None]]] = {
    "string": _string,
    "bool": _bool,
    "enum": _enum,
    "repeated": _repeated,
    "map": _map,
    "bytes": _bytes,
    "any": _inexpressible,
    "duration": _inexpressible,
    "timestamp": _inexpressible,
    "field_mask": _inexpressible,
}
