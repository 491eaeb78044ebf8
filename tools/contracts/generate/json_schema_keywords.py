"""Set the keywords of a JSON Schema in both of its variants: for the documents and for Python."""

from typing import Any

from tools.contracts.generate.json_values import Schema

__all__ = ["set_keywords", "set_values"]


def _each(schema: Schema) -> list[Schema]:
    """Return the schema for the documents and the one for Python."""
    return [schema, schema["x-python"]] if "x-python" in schema else [schema]


def set_keywords(schema: Schema, **keywords: Any) -> None:
    """Set keywords that mean the same in both variants."""
    for each in _each(schema):
        each |= keywords


def set_values(schema: Schema, rules: Any) -> None:
    """Set the allowed and the excluded values of a string or number."""
    if rules.HasField("const"):
        schema["const"] = rules.const
    if wanted := getattr(rules, "in"):
        schema["enum"] = list(wanted)
    if rules.not_in:
        schema["not"] = {"enum": list(rules.not_in)}
