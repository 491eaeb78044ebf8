"""JSON Schemas (2020-12) of messages, with the rules of proto3 JSON and buf.validate."""

from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

from postbus_runtime.contract import ContractError
from postbus_runtime.fields import choices, is_map, is_optional, message_of, value_of
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.empty_messages import EmptyMessages
from tools.contracts.generate.enum_components import share_enums
from tools.contracts.generate.json_schema_rules import constrain, set_formats
from tools.contracts.generate.json_values import (
    COMPONENTS,
    INTEGER,
    Schema,
    enum_values,
    known_value,
    response_schema,
    scalar,
)
from tools.contracts.generate.names import Names
from tools.contracts.generate.rule_remarks import field_remarks, message_remarks

__all__ = ["Schema", "Schemas"]

_ANY: Final = "google.protobuf.Any"


class Schemas:
    """Schemas of messages; `components` collects the schemas that references name.

    A message that is part of requests and of responses has two: requests are stricter. The fields
    `response_only`, by full name, are in no schema of a request.
    """

    def __init__(self, contracts: Contracts, response_only: frozenset[str] = frozenset()) -> None:
        self._contracts = contracts
        self._response_only = response_only
        self.names = Names(contracts)
        self._empty = EmptyMessages(contracts)
        self.components: dict[str, Schema] = {}

    def reference(self, message: Descriptor, *, request: bool = False) -> Schema:
        """Return a reference to the schema of a message, as part of a request or a response."""
        if (known := known_value(message.full_name)) is not None:
            return known
        name = self.name(message, request=request)
        if name not in self.components:
            self.components[name] = {}  # a message may hold itself
            self.components[name] = self.message(message, request=request)
        return {"$ref": f"#/components/schemas/{name}"}

    def name(self, message: Descriptor, *, request: bool) -> str:
        """Return the name of a message's component."""
        try:
            return self.names.component(message, request=request)
        except KeyError:
            raise ContractError(message, "its JSON form is not supported") from None

    def message(
        self, message: Descriptor, *, request: bool, without: frozenset[str] = frozenset()
    ) -> Schema:
        """Return the schema of a message without the fields `without`.

        A response has every field without presence, and those that a rule requires. A request must
        have the fields whose absence breaks a rule, and may have no members other than fields.
        """
        fields = [field for field in message.fields if field.name not in without]
        if request:
            fields = [field for field in fields if field.full_name not in self._response_only]
        refused = self._refused(message) if request else set()
        required = [
            field.json_name
            for field in fields
            if (field.name in refused if request else self._always_sent(field))
        ]
        schema: Schema = {
            "type": "object",
            "description": self._description(message) if request else self._comment(message),
            "properties": {
                field.json_name: self.field(field, request=request, required=field.name in refused)
                for field in fields
            },
        }
        schema |= {"required": required} if required else {}
        schema |= {"additionalProperties": False} if request else {}
        unions = [self._union(oneof, fields) for oneof in choices(message)] if request else []
        unions = [union for union in unions if union]
        return schema | ({"allOf": unions} if len(unions) > 1 else unions[0] if unions else {})

    def _always_sent(self, field: FieldDescriptor) -> bool:
        return not field.has_presence or bool(self._contracts.rules(field).required)

    def required(self, field: FieldDescriptor) -> bool:
        """Return whether a request without the field breaks a rule."""
        return field.name in self._refused(field.containing_type)

    def _refused(self, message: Any) -> set[str]:
        """Return the fields that protovalidate misses in an empty message."""
        violations = self._empty.violations(message)
        refused = {
            violation.proto.field.elements[0].field_name
            for violation in violations
            if violation.proto.field and violation.proto.field.elements
        }
        for field in message.fields:
            if self._contracts.is_output_only(field) and field.name in refused:
                raise ContractError(
                    field,
                    "OUTPUT_ONLY, so requests lack it, but a rule refuses that: set"
                    " (buf.validate.field).ignore = IGNORE_IF_ZERO_VALUE",
                )
            if self._contracts.is_required(field) and field.name not in refused:
                raise ContractError(
                    field, "REQUIRED, but no rule of buf.validate refuses it when it is missing"
                )
        return refused

    def field(self, field: FieldDescriptor, *, request: bool, required: bool = False) -> Schema:
        """Return the schema of a field with its comment and, in a request, its rules.

        A request may have an output-only field, whose value is ignored (AIP-203).
        """
        if request and self._contracts.is_output_only(field):
            return self.field(field, request=False) | {"readOnly": True, "x-python": {}}
        schema = self._value(field, request=request)
        rules = self._contracts.rules(field)
        schema = constrain(schema, rules, field) if request else set_formats(schema, rules)
        share_enums(schema, self.components, names=self.names, contracts=self._contracts)
        if request:
            choice = field.containing_oneof is not None and not is_optional(field)
            if field.has_presence and not required and not choice:
                schema = _nullable(schema)
        text = self._comment(field) or schema.get("description", "")
        remarks = field_remarks(self._contracts, field) if request else ""
        text = _paragraphs(text, remarks)
        return schema | ({"description": text} if text else {})

    def _description(self, message: Descriptor) -> str:
        """Return the comment of a message, and its rules that no schema expresses."""
        return _paragraphs(self._comment(message), message_remarks(self._contracts, message))

    def _comment(self, described: Descriptor | FieldDescriptor) -> str:
        return self._contracts.comment(described.full_name)

    def _value(self, field: FieldDescriptor, *, request: bool) -> Schema:
        single = self._single(value_of(field), request=request)
        if is_map(field):
            keys = scalar(message_of(field).fields_by_name["key"])
            return {"type": "object", "additionalProperties": single, "propertyNames": _key(keys)}
        return {"type": "array", "items": single} if field.is_repeated else single

    def _single(self, field: FieldDescriptor, *, request: bool) -> Schema:
        if field.enum_type:
            return enum_values(field.enum_type)
        if field.message_type is None:
            return self._shared(scalar(field), request=request)
        name = field.message_type.full_name
        if name == _ANY:
            return {
                "type": "object",
                "properties": {"@type": {"type": "string"}},
                **({"x-python": {}} if request else {}),
            }
        if (known := known_value(name)) is not None:
            return self._shared(known, request=request)
        if name.startswith("google.protobuf."):
            text = f"{name} has no JSON form: use a message of your own"
            raise ContractError(field, text)
        return self.reference(field.message_type, request=request)

    def _shared(self, schema: Schema, *, request: bool) -> Schema:
        if not request:
            return response_schema(schema)
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            self.components[name] = COMPONENTS[name]
        return schema

    def _union(self, oneof: OneofDescriptor, fields: list[FieldDescriptor]) -> Schema:
        """Return a tagged union: one member, or at most one if the oneof is not required.

        If a member is not in `fields`, the path or a header sets it, and there is no other one.
        """
        members = [{"required": [field.json_name]} for field in oneof.fields if field in fields]
        if len(members) < len(oneof.fields):
            return {"not": {"anyOf": members}} if members else {}
        rules = self._contracts.options.foreign(oneof, "buf.validate.oneof")
        if rules is not None and rules.required:
            return {"oneOf": members}
        return {"oneOf": [*members, {"not": {"anyOf": members}}]}


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


def _nullable(schema: Schema) -> Schema:
    """Return a schema that also takes null, which means that the field is not set."""
    if not schema or schema.get("type") == "null":
        return schema
    python = schema.pop("x-python", None)
    nullable: Schema = {"anyOf": [schema, {"type": "null"}]}
    if isinstance(schema.get("type"), str) and not {"const", "enum"} & schema.keys():
        nullable = schema | {"type": [schema["type"], "null"]}
    return nullable if python is None else nullable | {"x-python": _nullable(python)}


def _key(schema: Schema) -> Schema:
    """Return the schema of a map key as a JSON string."""
    if schema.get("type") == "string":
        return schema
    if schema.get("type") == "boolean":
        pattern = "^(?:true|false)$"
        return {"pattern": pattern, "x-python": {"type": "string", "pattern": pattern}}
    return {"pattern": INTEGER, "x-python": {"type": "string", "pattern": INTEGER}}
