"""Examples of messages in JSON, for the documents: they keep the rules of the contract."""

from collections.abc import Set
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message_factory import GetMessageClass
from protovalidate import EvaluationError, Validator, Violation

from postbus_runtime.fields import choices, is_map, message_of
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.empty_messages import EmptyMessages

__all__ = ["Examples"]

_UUID: Final = "01981f3a-7c00-7000-8000-000000000001"
_KNOWN: Final[dict[str, Any]] = {
    "google.protobuf.Timestamp": "2026-01-15T09:30:00Z",
    "google.protobuf.Duration": "1.500s",
    "google.protobuf.Empty": {},
    "google.protobuf.Struct": {},
}
_NULL: Final = "google.protobuf.NullValue"
_F = FieldDescriptor
_WIDE: Final = (_F.TYPE_INT64, _F.TYPE_SINT64, _F.TYPE_SFIXED64, _F.TYPE_UINT64, _F.TYPE_FIXED64)


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

    def of_request(self, message: Descriptor, without: frozenset[str]) -> dict[str, Any] | None:
        """Return a request without the fields `without`; None if a required field has no example.

        It has the required fields, and the strings that have an example.
        """
        document: dict[str, Any] = {}
        needed = self._needed(message)
        for field in _first_members(message):
            oneof = field.containing_oneof
            required = self._contracts.is_required(field) or field.name in needed
            required |= oneof is not None and oneof.name in needed
            if field.name in without or not (required or field.type == _F.TYPE_STRING):
                continue
            example = self.of_field(field)
            if example is not None:
                document[field.json_name] = example
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

    def _needed(self, message: Descriptor) -> set[str]:
        """Return the fields and oneofs whose rules an empty message breaks."""
        return {_part_of(each) for each in self._empty.violations(message)}

    def of_response(self, message: Descriptor, outer: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return a response with a value for every field, and the first member of each oneof."""
        outer = (*outer, message.full_name)
        document = {}
        for field in _first_members(message):
            value = self._response_value(field, outer)
            if value is not None or _is_null(field):
                document[field.json_name] = value
        return document

    def of_field(self, field: FieldDescriptor) -> Any:
        """Return the value of a field in a request; None if no example is known."""
        rules = self._contracts.rules(field)
        if field.is_repeated:
            value = None if is_map(field) else self._request_value(field, rules.repeated.items)
            return None if value is None else [value]
        return self._request_value(field, rules)

    def _request_value(self, field: FieldDescriptor, rules: Any) -> Any:
        if field.message_type is None or field.message_type.full_name.startswith("google."):
            return self._value(field, rules)
        return self.of_request(field.message_type, frozenset())

    def _response_value(self, field: FieldDescriptor, outer: tuple[str, ...]) -> Any:
        if is_map(field):
            return {}
        rules, kind = self._contracts.rules(field), field.message_type
        if kind is None or kind.full_name in _KNOWN:
            found = self._value(field, rules.repeated.items if field.is_repeated else rules)
            found = "" if found is None and not _is_null(field) else found
        elif kind.full_name.startswith("google.") or kind.full_name in outer:
            return [] if field.is_repeated else None
        else:
            found = self.of_response(message_of(field), outer)
        return [found] if field.is_repeated else found

    def _value(self, field: FieldDescriptor, rules: Any) -> Any:
        kind = rules.WhichOneof("type")
        own = getattr(getattr(rules, kind), "example", ()) if kind else ()
        if field.message_type is not None:
            return _KNOWN.get(field.message_type.full_name)
        if _is_null(field):
            return None
        if field.enum_type is not None:
            return _enum_value(field.enum_type, rules)
        if field.type == _F.TYPE_BOOL:
            return own[0] if own else False
        if field.type == _F.TYPE_STRING:
            return own[0] if own else self._string(field, rules)
        if field.type == _F.TYPE_BYTES:
            return None if rules.HasField("bytes") else ""
        number = own[0] if own else _lowest(rules)
        return str(number) if field.type in _WIDE else number

    def _string(self, field: FieldDescriptor, rules: Any) -> str | None:
        return _UUID if rules.string.uuid else self._by_name.get(field.name)


def _part_of(violation: Violation) -> str:
    """Return the field of the message in which a rule is broken; "" for a rule of the message."""
    path = violation.proto.field
    return path.elements[0].field_name if path is not None and path.elements else ""


def _is_null(field: FieldDescriptor) -> bool:
    return field.enum_type is not None and field.enum_type.full_name == _NULL


def _strings(rules: Any) -> Any:
    """Return the rules of a string, or of the strings of a list."""
    return rules.repeated.items.string if rules.HasField("repeated") else rules.string


def _first_members(message: Descriptor) -> list[FieldDescriptor]:
    """Return the fields, of each oneof the first only."""
    left_out = {each.name for oneof in choices(message) for each in oneof.fields[1:]}
    return [field for field in message.fields if field.name not in left_out]


def _enum_value(enum: EnumDescriptor, rules: Any) -> str:
    """Return the first allowed name, other than zero if there is another."""
    allowed = [
        value.name
        for value in enum.values
        if value.number not in rules.enum.not_in
        and (not getattr(rules.enum, "in") or value.number in getattr(rules.enum, "in"))
    ]
    return (
        allowed[1] if len(allowed) > 1 and enum.values_by_number[0].name in allowed else allowed[0]
    )


def _lowest(rules: Any) -> Any:
    """Return 1, or the lower bound of a number if it is greater."""
    kind = rules.WhichOneof("type")
    bounds = getattr(rules, kind) if kind else None
    if bounds is None:
        return 1
    if bounds.HasField("const"):
        return bounds.const
    if getattr(bounds, "in"):
        return getattr(bounds, "in")[0]
    low = bounds.gte if bounds.HasField("gte") else bounds.gt + 1 if bounds.HasField("gt") else 1
    high = bounds.lte if bounds.HasField("lte") else bounds.lt - 1 if bounds.HasField("lt") else 1
    return min(max(1, low), max(high, low))
