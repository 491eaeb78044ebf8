"""The rules of `buf.validate` for numbers as JSON Schema."""

from math import inf, isfinite
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.wrappers_pb2 import FloatValue

from shared.protojson import write_message
from tools.contracts.generate.json_schema_keywords import set_values
from tools.contracts.generate.json_values import Schema, wide_integer

__all__ = ["constrain_number"]

_NARROW: Final = ("int32", "uint32")
"""Formats of numbers that are equal in JSON and in binary, and have no second form as a string."""


def constrain_number(schema: Schema, rules: Any, _field: FieldDescriptor) -> None:
    """Set the bounds and the values of a number."""
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
    if schema.get("format") in _NARROW:
        set_values(schema, rules)


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
    number, texts = schema["anyOf"]
    if number["format"] == "float":
        bounds = {name: _as_shown(name, value) for name, value in bounds.items()}
    keywords = {names[name]: value for name, value in bounds.items() if isfinite(value)}
    number |= keywords
    schema["x-python"] |= keywords
    excluded = {"NaN"} if bounds or finite else set()
    excluded |= {"-Infinity"} if finite or _excludes(bounds, "gt", -inf) else set()
    excluded |= {"Infinity"} if finite or _excludes(bounds, "lt", inf) else set()
    texts["enum"] = [text for text in texts["enum"] if text not in excluded]
    if not texts["enum"]:
        schema |= number
        del schema["anyOf"]


def _excludes(bounds: dict[str, float], rule: str, infinite: float) -> bool:
    """Return whether a bound, `rule` or the same with `e` for its value, excludes infinity."""
    return rule in bounds or bounds.get(f"{rule}e", infinite) != infinite


def _as_shown(rule: str, bound: float) -> float:
    """Return a bound of 32 bits that includes its shortest text: a response shows 0.1 as `0.1`."""
    shown = float(write_message(FloatValue(value=bound)))
    if rule == "gte":
        return min(bound, shown)
    return max(bound, shown) if rule == "lte" else bound
