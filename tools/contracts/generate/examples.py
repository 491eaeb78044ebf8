"""Examples of messages in JSON, for the documents: they keep the rules of the contract."""

from collections.abc import Iterator, Sequence, Set
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message_factory import GetMessageClass
from protovalidate import EvaluationError, Validator, Violation

from postbus_runtime.fields import WRAPPERS, choices, is_map, message_of, oneof_of
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.empty_messages import EmptyMessages
from tools.contracts.generate.example_values import KNOWN, example_value, is_null

__all__ = ["Examples"]

_STRING: Final = FieldDescriptor.TYPE_STRING


class Examples:
    """Examples by the rule `example` of buf.validate, by other rules, and by type.

    A string without the rule has the example of the first field of the same name, if there is one.
    """

    def __init__(self, contracts: Contracts) -> None:
        self._contracts = contracts
        self._empty = EmptyMessages(contracts)
        self._validator = Validator()  # it caches messages by name
        self._by_name: dict[str, str] = {}
        for message in contracts.messages:
            for field in message.fields:
                for example in _strings(contracts.rules(field)).example[:1]:
                    self._by_name.setdefault(field.name, example)

    def of_request(
        self, message: Descriptor, without: frozenset[str], outer: tuple[str, ...] = ()
    ) -> dict[str, Any] | None:
        """Return a request without the fields `without`; None if a required field has no example.

        It has the required fields, and the strings that have an example. `outer` has the full names
        of the messages around it: a message that has to contain itself has no example.
        """
        if message.full_name in outer:
            return None
        outer = (*outer, message.full_name)
        document: dict[str, Any] = {}
        for fields, required in self._parts(message, without):
            examples = ((each.json_name, self.of_field(each, outer)) for each in fields)
            found = next(((name, value) for name, value in examples if value is not None), None)
            if found is not None:
                document[found[0]] = found[1]
            elif required:
                return None
        return document

    def is_valid(self, message: Descriptor, document: dict[str, Any], parts: Set[str]) -> bool:
        """Return whether a request with this JSON keeps the rules of its fields and oneofs `parts`.

        With "" in `parts`, also the rules of the message itself.
        """
        request = GetMessageClass(message)()
        try:
            ParseDict(document, request, descriptor_pool=self._contracts.pool)
            broken = self._validator.collect_violations(request)
        except (EvaluationError, ParseError):
            return False
        return parts.isdisjoint(map(_part_of, broken))

    def _parts(
        self, message: Descriptor, without: Set[str]
    ) -> Iterator[tuple[Sequence[FieldDescriptor], bool]]:
        """Yield the fields of an example, in turn those of which it has one; and if it must.

        Of a oneof that may be unset, it has the first member or none.
        """
        needed = {_part_of(each) for each in self._empty.violations(message)}
        for field in message.fields:
            oneof = oneof_of(field)
            fields: Sequence[FieldDescriptor] = oneof.fields if oneof is not None else [field]
            required = (field if oneof is None else oneof).name in needed
            required |= self._contracts.is_required(field)
            excluded = any(each.name in without for each in fields)
            if not excluded and field == fields[0] and (required or field.type == _STRING):
                yield fields if required else [field], required

    def of_response(self, message: Descriptor, outer: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return a response with a value for every field, and the first member of each oneof."""
        outer = (*outer, message.full_name)
        document = {}
        for field in _first_members(message):
            value = self._response_value(field, outer)
            if value is not None or is_null(field):
                document[field.json_name] = value
        return document

    def of_field(self, field: FieldDescriptor, outer: tuple[str, ...] = ()) -> Any:
        """Return the value of a field in a request; None if no example is known."""
        rules = self._contracts.rules(field)
        if field.is_repeated:
            value = None if is_map(field) else self._one(field, rules.repeated.items, outer)
            return None if value is None else [value]
        return self._one(field, rules, outer)

    def _one(self, field: FieldDescriptor, rules: Any, outer: tuple[str, ...]) -> Any:
        kind = field.message_type
        if kind is None or kind.full_name in KNOWN:
            return self._value(field, rules)
        return self.of_request(kind, frozenset(), outer)

    def _response_value(self, field: FieldDescriptor, outer: tuple[str, ...]) -> Any:
        if is_map(field):
            return {}
        rules, kind = self._contracts.rules(field), field.message_type
        if kind is None or kind.full_name in KNOWN:
            found = self._value(field, rules.repeated.items if field.is_repeated else rules)
            if found is None and (kind is None or kind.full_name in WRAPPERS):
                found = None if is_null(field) else ""
        else:
            found = None if kind.full_name in outer else self.of_response(message_of(field), outer)
        if field.is_repeated:
            return [found] if found is not None or is_null(field) else []
        return found

    def _value(self, field: FieldDescriptor, rules: Any) -> Any:
        return example_value(field, rules, self._by_name.get(field.name))


def _part_of(violation: Violation) -> str:
    """Return the field of the message in which a rule is broken; "" for a rule of the message."""
    path = violation.proto.field
    return path.elements[0].field_name if path is not None and path.elements else ""


def _strings(rules: Any) -> Any:
    """Return the rules of a string, or of the strings of a list."""
    return rules.repeated.items.string if rules.HasField("repeated") else rules.string


def _first_members(message: Descriptor) -> list[FieldDescriptor]:
    """Return the fields, of each oneof the first only."""
    left_out = {each.name for oneof in choices(message) for each in oneof.fields[1:]}
    return [field for field in message.fields if field.name not in left_out]
