"""Enums as components of the documents, shared by all fields of their type."""

from google.protobuf.descriptor import EnumDescriptor

from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.json_values import Schema
from tools.contracts.generate.names import Names

__all__ = ["share_enums"]


def share_enums(
    schema: Schema,
    components: dict[str, Schema],
    *,
    names: Names,
    contracts: Contracts,
) -> None:
    """Replace each enum with all its values by a reference to its component, which is added."""
    enum = schema.pop("x-enum", None)
    if enum is not None and schema["enum"] == [value.name for value in enum.values]:
        name = names.enum(enum)
        components[name] = _described(enum, contracts)
        del schema["type"], schema["enum"]
        schema["$ref"] = f"#/components/schemas/{name}"
    parts = [schema.get("items"), schema.get("additionalProperties"), *schema.get("anyOf", ())]
    for part in parts:
        if isinstance(part, dict):
            share_enums(part, components, names=names, contracts=contracts)


def _described(enum: EnumDescriptor, contracts: Contracts) -> Schema:
    """Return the schema of an enum, with the comment of each value."""
    values = [
        f"- `{value.name}`: {contracts.comment(f'{enum.full_name}.{value.name}')}"
        for value in enum.values
    ]
    about = "\n".join([contracts.comment(enum.full_name), "", *values])
    return {
        "type": "string",
        "enum": [value.name for value in enum.values],
        "description": about,
    }
