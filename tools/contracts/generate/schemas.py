"""JSON Schemas (2020-12) of messages, with the rules of proto3 JSON and buf.validate."""

from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    OneofDescriptor,
)
from google.protobuf.message_factory import GetMessageClass
from protovalidate import Validator

from postbus_runtime.contract import ContractError
from postbus_runtime.fields import choices, is_map, is_optional, message_of, value_of
from tools.contracts.generate.descriptors import Contracts
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

__all__ = ["Schema", "Schemas", "names_of", "reachable"]

_ANY: Final = "google.protobuf.Any"


def reachable(messages: Iterable[Descriptor]) -> dict[str, Descriptor]:
    """Return the messages and the types of their fields, recursively, by full name."""
    found: dict[str, Descriptor] = {}
    waiting = list(messages)
    while waiting:
        message = waiting.pop()
        if message.full_name not in found:
            found[message.full_name] = message
            waiting += [each.message_type for each in message.fields if each.message_type]
    return found


def names_of(contracts: Contracts) -> dict[str, str]:
    """Return the component name of each message and enum: with the package if two are equal."""
    short = {
        kind.full_name: kind.full_name.removeprefix(f"{kind.file.package}.").replace(".", "")
        for kind in chain(contracts.messages, _enums(contracts))
    }
    counts: dict[str, int] = dict.fromkeys(COMPONENTS, 1)
    for name in short.values():
        counts[name] = counts.get(name, 0) + 1
    return {
        full: name if counts[name] == 1 else _package(full) + name for full, name in short.items()
    }


def _enums(contracts: Contracts) -> Iterable[EnumDescriptor]:
    """Return the enums of the fields of all messages."""
    fields = (field for message in contracts.messages for field in message.fields)
    found = {value_of(field).enum_type for field in fields}
    return sorted((enum for enum in found if enum is not None), key=lambda enum: enum.full_name)


def _package(full_name: str) -> str:
    return full_name.split(".")[1].capitalize()


class Schemas:
    """Schemas of messages; `components` collects the schemas that references name.

    A message that is part of requests and of responses has two: requests are stricter. The fields
    `response_only`, by full name, are in no schema of a request.
    """

    def __init__(self, contracts: Contracts, response_only: frozenset[str] = frozenset()) -> None:
        self._contracts = contracts
        self._response_only = response_only
        self._names = names_of(contracts)
        self._in_responses = reachable(
            chain(
                (method.output_type for method in contracts.methods),
                (each for each in contracts.messages if each.full_name in contracts.event_options),
            )
        )
        self._validator = Validator()  # it caches messages by name, which differ between contracts
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
        name = self._names.get(message.full_name)
        if name is None:
            raise ContractError(message, "its JSON form is not supported")
        return name + ("Input" if request and message.full_name in self._in_responses else "")

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
            "description": self._contracts.comment(message.full_name),
            "properties": {
                field.json_name: self.field(field, request=request, required=field.name in refused)
                for field in fields
            },
        }
        schema |= {"required": required} if required else {}
        schema |= {"additionalProperties": False} if request else {}
        unions = [self._union(oneof, fields) for oneof in choices(message)] if request else []
        return schema | ({"allOf": unions} if len(unions) > 1 else unions[0] if unions else {})

    def _always_sent(self, field: FieldDescriptor) -> bool:
        return not field.has_presence or bool(self._contracts.rules(field).required)

    def required(self, field: FieldDescriptor) -> bool:
        """Return whether a request without the field breaks a rule."""
        return field.name in self._refused(field.containing_type)

    def _refused(self, message: Any) -> set[str]:
        """Return the fields that protovalidate misses in an empty message."""
        violations = self._validator.collect_violations(GetMessageClass(message)())
        refused = {
            violation.proto.field.elements[0].field_name
            for violation in violations
            if violation.proto.field and violation.proto.field.elements
        }
        for field in message.fields:
            if self._contracts.is_required(field) and field.name not in refused:
                raise ContractError(
                    field, "REQUIRED, but no rule of buf.validate refuses it when it is missing"
                )
        return refused

    def field(self, field: FieldDescriptor, *, request: bool, required: bool = False) -> Schema:
        """Return the schema of a field with its comment and, in a request, its rules."""
        schema = self._value(field, request=request)
        rules = self._contracts.rules(field)
        schema = constrain(schema, rules, field) if request else set_formats(schema, rules)
        share_enums(schema, self.components, names=self._names, contracts=self._contracts)
        if request:
            choice = field.containing_oneof is not None and not is_optional(field)
            if field.has_presence and not required and not choice:
                schema = _nullable(schema)
        comment = self._contracts.comment(field.full_name)
        return schema | ({"description": comment} if comment else {})

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
        if name == _ANY and not request:
            return {"type": "object", "properties": {"@type": {"type": "string"}}}
        if (known := known_value(name)) is not None:
            return self._shared(known, request=request)
        if name.startswith("google.protobuf."):
            raise ContractError(field, f"{name} is not supported")
        return self.reference(field.message_type, request=request)

    def _shared(self, schema: Schema, *, request: bool) -> Schema:
        if not request:
            return response_schema(schema)
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            self.components[name] = COMPONENTS[name]
        return schema

    def _union(self, oneof: OneofDescriptor, fields: list[FieldDescriptor]) -> Schema:
        """Return a tagged union: one member, or at most one if the oneof is not required."""
        members = [{"required": [field.json_name]} for field in oneof.fields if field in fields]
        rules = self._contracts.options.foreign(oneof, "buf.validate.oneof")
        if rules is not None and rules.required:
            return {"oneOf": members}
        return {"oneOf": [*members, {"not": {"anyOf": members}}]}


def _nullable(schema: Schema) -> Schema:
    """Return a schema that also takes null, which means that the field is not set."""
    if not schema:
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
