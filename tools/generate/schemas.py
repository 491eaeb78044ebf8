"""JSON Schema (2020-12) of messages, by the rules of proto3 JSON and buf.validate."""

from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tools.generate.contracts import Contracts, GeneratorError

__all__ = ["EMAIL", "UUID", "Schema", "Schemas"]

Schema = dict[str, Any]

UUID: Final = "^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$"
_LABEL: Final = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
EMAIL: Final = f"^[a-zA-Z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_LABEL}(?:\\.{_LABEL})*$"
"""Of the HTML standard, which buf.validate follows."""

_F = FieldDescriptor
_INT32: Final = {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1}
_UINT32: Final = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
_INT64: Final = {"type": "string", "format": "int64", "pattern": "^-?[0-9]{1,19}$"}
_UINT64: Final = {"type": "string", "format": "uint64", "pattern": "^[0-9]{1,20}$"}
_SCALARS: Final[dict[int, Schema]] = {
    _F.TYPE_BOOL: {"type": "boolean"},
    _F.TYPE_STRING: {"type": "string"},
    _F.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    _F.TYPE_DOUBLE: {"type": "number", "format": "double"},
    _F.TYPE_FLOAT: {"type": "number", "format": "float"},
    _F.TYPE_INT32: _INT32,
    _F.TYPE_SINT32: _INT32,
    _F.TYPE_SFIXED32: _INT32,
    _F.TYPE_UINT32: _UINT32,
    _F.TYPE_FIXED32: _UINT32,
    _F.TYPE_INT64: _INT64,
    _F.TYPE_SINT64: _INT64,
    _F.TYPE_SFIXED64: _INT64,
    _F.TYPE_UINT64: _UINT64,
    _F.TYPE_FIXED64: _UINT64,
}
_WELL_KNOWN: Final[dict[str, Schema]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    "google.protobuf.FieldMask": {"type": "string"},
}


class Schemas:
    """Schemas of messages; those that are referred to gather in `components`, by short name."""

    def __init__(self, contracts: Contracts) -> None:
        self._contracts = contracts
        self._names: dict[str, str] = {}
        self.components: dict[str, Schema] = {}

    def reference(self, message: Descriptor) -> Schema:
        """Return a reference to a message's schema."""
        name = message.full_name.removeprefix(message.file.package + ".").replace(".", "")
        if self._names.setdefault(name, message.full_name) != message.full_name:
            raise GeneratorError(message, f"its name is taken by {self._names[name]}")
        if name not in self.components:
            self.components[name] = {}  # a message may contain itself
            self.components[name] = self.message(message, answers=True)
        return {"$ref": f"#/components/schemas/{name}"}

    def message(
        self, message: Descriptor, *, answers: bool, without: frozenset[str] = frozenset()
    ) -> Schema:
        """Return the schema of a message, less the fields `without`.

        In what the system `answers` every field without presence is there; in what it is asked,
        those that google.api.field_behavior requires.
        """
        fields = [field for field in message.fields if field.name not in without]
        required = [
            field.json_name
            for field in fields
            if (not field.has_presence if answers else self._contracts.is_required(field))
        ]
        schema: Schema = {
            "type": "object",
            "description": self._contracts.comment(message.full_name),
            "properties": {
                field.json_name: self.field(field, nullable=not answers) for field in fields
            },
            "additionalProperties": False,
        }
        return schema | ({"required": required} if required else {})

    def field(self, field: FieldDescriptor, *, nullable: bool = False) -> Schema:
        """Return the schema of a field, with its comment and rules."""
        if field.containing_oneof and not _is_optional(field):
            raise GeneratorError(field, "oneofs are not supported over REST yet")
        rules = self._contracts.rules(field)
        if field.message_type and field.message_type.GetOptions().map_entry:
            value = self._single(field.message_type.fields_by_name["value"], rules.map.values)
            schema: Schema = {"type": "object", "additionalProperties": value}
        elif field.is_repeated:
            schema = {"type": "array", "items": self._single(field, rules.repeated.items)}
            schema |= _present(
                rules.repeated, min_items="minItems", max_items="maxItems", unique="uniqueItems"
            )
        else:
            schema = self._single(field, rules)
        if nullable and _is_optional(field):
            schema["type"] = [schema["type"], "null"]
        return schema | {"description": self._contracts.comment(field.full_name)}

    def _single(self, field: FieldDescriptor, rules: Any) -> Schema:
        if field.message_type:
            name = field.message_type.full_name
            if name in _WELL_KNOWN:
                return dict(_WELL_KNOWN[name])
            if name.startswith("google.protobuf."):
                raise GeneratorError(field, f"{name} is not supported over REST yet")
            return self.reference(field.message_type)
        if field.enum_type:
            return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
        if field.type == FieldDescriptor.TYPE_STRING:
            return {"type": "string"} | _string_rules(field, rules)
        return _SCALARS[field.type] | _number_rules(rules)


def _is_optional(field: FieldDescriptor) -> bool:
    oneof = field.containing_oneof
    return oneof is not None and oneof.name == f"_{field.name}"


def _string_rules(field: FieldDescriptor, rules: Any) -> Schema:
    string, ignore_empty = rules.string, rules.ignore == 1
    supported = {"min_len", "max_len", "len", "pattern", "email", "uuid"}
    for rule, _ in string.ListFields():
        if rule.name not in supported:
            raise GeneratorError(field, f"the rule string.{rule.name} is not supported yet")
    schema = _present(string, min_len="minLength", max_len="maxLength")
    if string.HasField("len"):
        schema |= {"minLength": string.len, "maxLength": string.len}
    patterns = [
        (string.pattern, None) if string.pattern else None,
        (EMAIL, "email") if string.email else None,
        (UUID, "uuid") if string.uuid else None,
    ]
    for pattern, name in filter(None, patterns):
        schema["pattern"] = f"^$|{pattern}" if ignore_empty else pattern
        if name and not ignore_empty:
            schema["format"] = name
    if ignore_empty:
        schema.pop("minLength", None)
    return schema


def _number_rules(rules: Any) -> Schema:
    kind = rules.WhichOneof("type")
    if kind is None:
        return {}
    limits = getattr(rules, kind)
    names = {"gte": "minimum", "lte": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
    known = {field.name for field in limits.DESCRIPTOR.fields}
    return _present(limits, **{rule: name for rule, name in names.items() if rule in known})


def _present(rules: Any, **names: str) -> Schema:
    """The rules that are set, under JSON Schema's names."""
    return {name: getattr(rules, rule) for rule, name in names.items() if rules.HasField(rule)}
