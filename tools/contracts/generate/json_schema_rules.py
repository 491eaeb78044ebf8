"""The rules of `buf.validate` as JSON Schema.

Rules that JSON Schema cannot express (CEL, lengths in bytes, limits of times) are missing in the
documents; the gateway and the worker enforce every rule.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from postbus_runtime.fields import is_map, value_of
from postbus_runtime.options import enum_name
from shared.bounds import MAX_ELEMENTS
from tools.contracts.generate.json_values import Schema, wide_integer
from tools.contracts.generate.regular_expressions import FORMATS, WELL_KNOWN, escaped, is_portable

__all__ = ["constrain"]


def constrain(schema: Schema, rules: Any, field: FieldDescriptor) -> Schema:
    """Return the schema of a field's value with its rules, a buf.validate.FieldRules."""
    _bound(schema, field)
    ignore = enum_name(rules, "ignore")
    if ignore == "IGNORE_ALWAYS":
        return schema
    kind = rules.WhichOneof("type")
    if kind is not None:
        apply = _BY_KIND.get(kind, _number)
        apply(schema, getattr(rules, kind), field)
    if rules.required:
        _refuse_zero(schema, field)
    if ignore == "IGNORE_IF_ZERO_VALUE" and not field.has_presence:
        return _or_zero(schema, field)
    return schema


def _bound(schema: Schema, field: FieldDescriptor) -> None:
    """Bound lists and maps, for which the contract may have no bound of its own."""
    if is_map(field):
        _set(schema, maxProperties=MAX_ELEMENTS)
    elif field.is_repeated and schema.get("type") == "array":
        _set(schema, maxItems=MAX_ELEMENTS)


def _each(schema: Schema) -> list[Schema]:
    """Return the schema for the documents and the one for Python."""
    return [schema, schema["x-python"]] if "x-python" in schema else [schema]


def _set(schema: Schema, **keywords: Any) -> None:
    for each in _each(schema):
        each |= keywords


def _copy(schema: Schema, rules: Any, **names: str) -> None:
    _set(schema, **{names[rule]: getattr(rules, rule) for rule in names if rules.HasField(rule)})


def _values(schema: Schema, rules: Any) -> None:
    if rules.HasField("const"):
        schema["const"] = rules.const
    if wanted := getattr(rules, "in"):
        schema["enum"] = list(wanted)
    if rules.not_in:
        schema["not"] = {"enum": list(rules.not_in)}


def _string(schema: Schema, rules: Any, _field: FieldDescriptor) -> None:
    _copy(schema, rules, max_bytes="maxLength")  # no character is shorter than a byte
    _copy(schema, rules, min_len="minLength", max_len="maxLength")
    if rules.HasField("len"):
        _set(schema, minLength=rules.len, maxLength=rules.len)
    well_known = rules.WhichOneof("well_known")
    if well_known in FORMATS:
        schema["format"] = FORMATS[well_known]
    patterns = [WELL_KNOWN[well_known]] if well_known in WELL_KNOWN else []
    if rules.pattern:
        schema["x-python"]["pattern"] = rules.pattern
        patterns += [rules.pattern] if is_portable(rules.pattern) else []
    patterns += [f"^{re.escape(rules.prefix)}"] if rules.prefix else []
    patterns += [f"{re.escape(rules.suffix)}$"] if rules.suffix else []
    patterns += [re.escape(rules.contains)] if rules.contains else []
    if patterns:
        schema["pattern"] = escaped(patterns[0])
        schema["x-python"].setdefault("pattern", patterns[0])
    if patterns[1:]:
        schema["allOf"] = [{"pattern": escaped(pattern)} for pattern in patterns[1:]]
    _values(schema, rules)


def _number(schema: Schema, rules: Any, field: FieldDescriptor) -> None:
    known = {each.name for each in rules.DESCRIPTOR.fields}
    bounds = {
        name: getattr(rules, name)
        for name in ("gt", "gte", "lt", "lte")
        if name in known and rules.HasField(name)
    }
    low, high = bounds.get("gte", bounds.get("gt")), bounds.get("lte", bounds.get("lt"))
    if low is None or high is None or low <= high:  # else the values outside a range are allowed
        if "anyOf" in schema:
            _bound_float(schema, bounds, finite=rules.finite)
        elif bounds:
            _bound_integer(schema, bounds)
    if "$ref" not in schema and "anyOf" not in schema and "int64" not in schema.get("format", ""):
        _values(schema, rules)


def _bound_integer(schema: Schema, bounds: dict[str, int]) -> None:
    python = schema["x-python"]
    for name, value in bounds.items():
        keyword = "minimum" if name in {"gt", "gte"} else "maximum"
        python[keyword] = value + (name == "gt") - (name == "lt")
    low, high = python["minimum"], python["maximum"]
    if "$ref" in schema:
        schema |= wide_integer(schema.pop("$ref").rpartition("/")[2].lower(), low, high)
    schema |= {"minimum": low, "maximum": high}


def _bound_float(schema: Schema, bounds: dict[str, float], *, finite: bool) -> None:
    names = {"gt": "exclusiveMinimum", "gte": "minimum", "lt": "exclusiveMaximum", "lte": "maximum"}
    keywords = {names[name]: value for name, value in bounds.items()}
    number, texts = schema["anyOf"]
    number |= keywords
    schema["x-python"] |= keywords
    excluded = {"NaN"} if bounds or finite else set()
    excluded |= {"-Infinity"} if finite or bounds.keys() & {"gt", "gte"} else set()
    excluded |= {"Infinity"} if finite or bounds.keys() & {"lt", "lte"} else set()
    texts["enum"] = [text for text in texts["enum"] if text not in excluded]
    if not texts["enum"]:
        schema |= number
        del schema["anyOf"]


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
    _set(schema, enum=names)


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


def _refuse_zero(schema: Schema, field: FieldDescriptor) -> None:
    """Exclude the zero value: `required` of a field without presence."""
    if field.has_presence:
        return
    kind = schema.get("type")
    if kind == "array":
        _set(schema, minItems=max(1, schema.get("minItems", 0)))
    elif kind == "object":
        _set(schema, minProperties=max(1, schema.get("minProperties", 0)))
    elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        _set(schema, minLength=max(1, schema.get("minLength", 0)))
    elif field.type == FieldDescriptor.TYPE_BOOL:
        schema["const"] = True
    elif field.enum_type:
        zero = field.enum_type.values_by_number[0].name
        _set(schema, enum=[name for name in schema["enum"] if name != zero])
    else:
        schema["not"] = {"enum": [0, "0"]}


def _or_zero(schema: Schema, field: FieldDescriptor) -> Schema:
    """Return a schema that also takes the zero value, to which the rules do not apply."""
    zero: Any = {"array": [], "object": {}, "boolean": False}.get(str(schema.get("type")), 0)
    if field.enum_type and not field.is_repeated:
        zero = field.enum_type.values_by_number[0].name
    elif zero == 0 and zero is not False:
        text = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
        zero = "" if field.type in text else 0
    python = schema.pop("x-python", dict(schema))
    return {
        "anyOf": [schema, {"const": zero}],
        "x-python": _loose(python),
    }


def _loose(python: Schema) -> Schema:
    """Return only the type; protovalidate checks the rest."""
    return {key: python[key] for key in ("type", "customTypePath", "items") if key in python}
