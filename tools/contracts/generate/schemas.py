"""JSON Schema (2020-12) of messages, by the rules of proto3 JSON and buf.validate."""

from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message_factory import GetMessageClass
from protovalidate import Validator

from tools.contracts.generate.descriptors import Contracts, GeneratorError
from tools.contracts.generate.fields import choices, is_map, is_optional, message_of, value_of
from tools.contracts.generate.json_schema_rules import constrain
from tools.contracts.generate.json_values import (
    COMPONENTS,
    Schema,
    answered,
    enum_values,
    known_value,
    scalar,
)
from tools.contracts.generate.regular_expressions import integers

__all__ = ["Schema", "Schemas", "names_of", "reachable"]

_ANY: Final = "google.protobuf.Any"


def reachable(messages: Iterable[Descriptor]) -> dict[str, Descriptor]:
    """Return these messages and all that they hold, by full name."""
    found: dict[str, Descriptor] = {}
    waiting = list(messages)
    while waiting:
        message = waiting.pop()
        if message.full_name not in found:
            found[message.full_name] = message
            waiting += [each.message_type for each in message.fields if each.message_type]
    return found


def names_of(contracts: Contracts) -> dict[str, str]:
    """Return the names of messages in documents: short, with the package where two are alike."""
    short = {
        message.full_name: message.full_name.removeprefix(f"{message.file.package}.").replace(
            ".", ""
        )
        for message in contracts.messages
    }
    counts: dict[str, int] = dict.fromkeys(COMPONENTS, 1)
    for name in short.values():
        counts[name] = counts.get(name, 0) + 1
    return {
        full: name if counts[name] == 1 else _package(full) + name for full, name in short.items()
    }


def _package(full_name: str) -> str:
    return full_name.split(".")[1].capitalize()


class Schemas:
    """Schemas of messages; those that are referred to gather in `components`.

    A message that is both asked and answered has two: what clients send is stricter. The fields
    `unasked`, by full name, are in none that is asked.
    """

    def __init__(self, contracts: Contracts, unasked: frozenset[str] = frozenset()) -> None:
        self._contracts = contracts
        self._unasked = unasked
        self._names = names_of(contracts)
        self._answered = reachable(
            chain(
                (method.output_type for method in contracts.methods),
                (each for each in contracts.messages if contracts.is_event(each)),
            )
        )
        self._validator = Validator()  # it remembers messages by name: one for each contract
        self.components: dict[str, Schema] = {}

    def reference(self, message: Descriptor, *, asked: bool = False) -> Schema:
        """Return a reference to the schema of a message, as the system answers it or is asked."""
        if (known := known_value(message.full_name)) is not None:
            return known
        name = self.name(message, asked=asked)
        if name not in self.components:
            self.components[name] = {}  # a message may hold itself
            self.components[name] = self.message(message, asked=asked)
        return {"$ref": f"#/components/schemas/{name}"}

    def name(self, message: Descriptor, *, asked: bool) -> str:
        """Return the name of a message's component."""
        name = self._names.get(message.full_name)
        if name is None:
            raise GeneratorError(message, "it has no JSON form here")
        return name + ("Input" if asked and message.full_name in self._answered else "")

    def message(
        self, message: Descriptor, *, asked: bool, without: frozenset[str] = frozenset()
    ) -> Schema:
        """Return the schema of a message, less the fields `without`.

        In an answer every field without presence is there; in what is asked, those are required
        whose absence breaks a rule, and nothing else than fields may be there.
        """
        fields = [field for field in message.fields if field.name not in without]
        if asked:
            fields = [field for field in fields if field.full_name not in self._unasked]
        refused = self._refused(message) if asked else set()
        required = [
            field.json_name
            for field in fields
            if (field.name in refused if asked else not field.has_presence)
        ]
        schema: Schema = {
            "type": "object",
            "description": self._contracts.comment(message.full_name),
            "properties": {
                field.json_name: self.field(field, asked=asked, required=field.name in refused)
                for field in fields
            },
        }
        schema |= {"required": required} if required else {}
        schema |= {"additionalProperties": False} if asked else {}
        unions = [self._union(oneof, fields) for oneof in choices(message)] if asked else []
        return schema | ({"allOf": unions} if len(unions) > 1 else unions[0] if unions else {})

    def required(self, field: FieldDescriptor) -> bool:
        """Whether a request without the field breaks a rule."""
        return field.name in self._refused(field.containing_type)

    def _refused(self, message: Any) -> set[str]:
        """The fields that the empty message must not lack, asked of protovalidate itself."""
        violations = self._validator.collect_violations(GetMessageClass(message)())
        refused = {
            violation.proto.field.elements[0].field_name
            for violation in violations
            if violation.proto.field and violation.proto.field.elements
        }
        for field in message.fields:
            if self._contracts.is_required(field) and field.name not in refused:
                raise GeneratorError(
                    field, "REQUIRED, but no rule of buf.validate refuses it when it is missing"
                )
        return refused

    def field(self, field: FieldDescriptor, *, asked: bool, required: bool = False) -> Schema:
        """Return the schema of a field; with its comment, and with its rules if it is asked."""
        schema = self._value(field, asked=asked)
        if asked:
            schema = constrain(schema, self._contracts.rules(field), field)
            choice = field.containing_oneof is not None and not is_optional(field)
            if field.has_presence and not required and not choice:
                schema = _nullable(schema)
        comment = self._contracts.comment(field.full_name)
        return schema | ({"description": comment} if comment else {})

    def _value(self, field: FieldDescriptor, *, asked: bool) -> Schema:
        single = self._single(value_of(field), asked=asked)
        if is_map(field):
            keys = scalar(message_of(field).fields_by_name["key"])
            return {"type": "object", "additionalProperties": single, "propertyNames": _key(keys)}
        return {"type": "array", "items": single} if field.is_repeated else single

    def _single(self, field: FieldDescriptor, *, asked: bool) -> Schema:
        if field.enum_type:
            return enum_values(field.enum_type)
        if field.message_type is None:
            return self._shared(scalar(field), asked=asked)
        name = field.message_type.full_name
        if name == _ANY and not asked:
            return {"type": "object", "properties": {"@type": {"type": "string"}}}
        if (known := known_value(name)) is not None:
            return self._shared(known, asked=asked)
        if name.startswith("google.protobuf."):
            raise GeneratorError(field, f"{name} is not supported here")
        return self.reference(field.message_type, asked=asked)

    def _shared(self, schema: Schema, *, asked: bool) -> Schema:
        if not asked:
            return answered(schema)
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            self.components[name] = COMPONENTS[name]
        return schema

    def _union(self, oneof: OneofDescriptor, fields: list[FieldDescriptor]) -> Schema:
        """A tagged union: one member, or none where the oneof is not required."""
        members = [{"required": [field.json_name]} for field in oneof.fields if field in fields]
        if self._contracts.option(oneof, "buf.validate.oneof").required:
            return {"oneOf": members}
        return {"oneOf": [*members, {"not": {"anyOf": members}}]}


def _nullable(schema: Schema) -> Schema:
    """Null stands for a field that is not set."""
    if not schema:
        return schema
    python = schema.pop("x-python", None)
    nullable: Schema = {"anyOf": [schema, {"type": "null"}]}
    if isinstance(schema.get("type"), str) and not {"const", "enum"} & schema.keys():
        nullable = schema | {"type": [schema["type"], "null"]}
    return nullable if python is None else nullable | {"x-python": _nullable(python)}


def _key(schema: Schema) -> Schema:
    """The keys of JSON objects are strings, whatever those of the map are."""
    if schema.get("type") == "string":
        return schema
    if schema.get("type") == "boolean":
        pattern = "^(?:true|false)$"
        return {"pattern": pattern, "x-python": {"type": "string", "pattern": pattern}}
    wide = COMPONENTS[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    pattern = integers(wide["minimum"], wide["maximum"])
    return {"pattern": pattern, "x-python": {"type": "string", "pattern": pattern}}
