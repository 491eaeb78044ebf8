"""The options of methods and events, read from descriptors into typed objects.

Only this module contains the full names of our options and the fields of their messages; the
gateway and `shared.bounds` also read options of other packages. It does not validate: the generator
refuses invalid options before it writes the descriptors.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

from google.protobuf.descriptor import (
    Descriptor,
    EnumValueDescriptor,
    FieldDescriptor,
    MethodDescriptor,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from postbus_runtime.reasons import Scope

__all__ = [
    "Access",
    "EventOptions",
    "HttpOption",
    "Idempotency",
    "MethodOptions",
    "OptionReader",
    "ReasonOptions",
    "enum_name",
]

_METHOD: Final = "postbus.options.v1.method"
_EVENT: Final = "postbus.options.v1.event"
_REASON: Final = "postbus.options.v1.reason"
_HTTP: Final = "google.api.http"
_BEHAVIOR: Final = "google.api.field_behavior"
_DEFAULT_TIMEOUT_MS: Final = 5000


class Access(StrEnum):
    """The clients that may call a method or receive an event, from the widest to the narrowest."""

    PUBLIC = "PUBLIC"
    USER = "USER"
    INTERNAL = "INTERNAL"


class Idempotency(StrEnum):
    """The effect of a repeated call: unknown, none, or the same as that of the first call."""

    UNKNOWN = "UNKNOWN"
    NO_SIDE_EFFECTS = "NO_SIDE_EFFECTS"
    IDEMPOTENT = "IDEMPOTENT"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOption:
    """One binding of `google.api.http` as it is written, with the names of proto."""

    verb: str
    """In capitals; a custom verb as it is written."""
    template: str
    body: str
    response_body: str
    custom: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptions:
    """The options of a method; paths and fields have the names of proto."""

    access: Access | None
    """None if the method states no access."""
    timeout_ms: int
    http_status: int
    """0 if unset."""
    secret_response: bool
    version: str
    expected_version: str
    ends_session: bool
    rate_limit: str
    callers: frozenset[str]
    reasons: tuple[str, ...]
    idempotency: Idempotency
    http: tuple[HttpOption, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventOptions:
    """The options of an event; paths and fields have the names of proto."""

    subject: str
    version: int
    aggregate_version: str
    access: Access
    recipient: str
    ended_sessions: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonOptions:
    """The options of a reason."""

    code: int
    """The number of a google.rpc.Code; 0 if unset."""
    scope: Scope
    http_status: int
    """0 if unset."""


class OptionReader:
    """Reads the options of descriptors that belong to `pool`."""

    def __init__(self, pool: DescriptorPool) -> None:
        self._pool = pool

    def method(self, method: MethodDescriptor) -> MethodOptions:
        """Return the options of a method."""
        values = _values(self._option(method, _METHOD))
        level = enum_name(method.GetOptions(), "idempotency_level")
        return MethodOptions(
            access=_access(values),
            timeout_ms=values.get("default_timeout_ms") or _DEFAULT_TIMEOUT_MS,
            http_status=values.get("http_status", 0),
            secret_response=values.get("secret_response", False),
            version=values.get("version", ""),
            expected_version=values.get("expected_version", ""),
            ends_session=values.get("ends_session", False),
            rate_limit=values.get("rate_limit", ""),
            callers=frozenset(values.get("callers", ())),
            reasons=tuple(values.get("reasons", ())),
            idempotency=Idempotency(level.removeprefix("IDEMPOTENCY_")),
            http=self._http(method),
        )

    def event(self, message: Descriptor) -> EventOptions | None:
        """Return the options of an event; None if the message is not an event."""
        if not self._has(message, _EVENT):
            return None
        values = _values(self._option(message, _EVENT))
        return EventOptions(
            subject=values.get("subject", ""),
            version=values.get("version") or 1,
            aggregate_version=values.get("aggregate_version", ""),
            access=_access(values) or Access.INTERNAL,
            recipient=values.get("recipient", ""),
            ended_sessions=values.get("ended_sessions", ""),
        )

    def reason(self, value: EnumValueDescriptor) -> ReasonOptions:
        """Return the options of a value of an enum `Reason`."""
        option = self._option(value, _REASON)
        scope = _values(option).get("scope", "SCOPE_UNSPECIFIED").removeprefix("SCOPE_")
        return ReasonOptions(
            code=option.code if option else 0,
            scope=Scope.NAMED if scope == "UNSPECIFIED" else Scope(scope),
            http_status=option.http_status if option else 0,
        )

    def behaviors(self, field: FieldDescriptor) -> frozenset[str]:
        """Return the names in `google.api.field_behavior`, such as `REQUIRED` (AIP-203)."""
        numbers = self._option(field, _BEHAVIOR)
        return frozenset(self._behavior_names[number] for number in numbers or ())

    def foreign(self, owner: Any, extension: str) -> Any:
        """Return an option of another package, such as `buf.validate.field`.

        A message of the pool's own class; None if the descriptor set does not define the option.
        """
        return self._option(owner, extension)

    def unknown_values(self, owner: Any) -> Iterator[str]:
        """Yield each number in our options of a descriptor that its enum lacks, with its field."""
        for extension, rules in self._options(owner).ListFields():
            if extension.full_name in (_METHOD, _EVENT, _REASON):
                for field, value in rules.ListFields():
                    if field.enum_type and value not in field.enum_type.values_by_number:
                        yield f"{field.name} has no value {value}"

    def _http(self, method: MethodDescriptor) -> tuple[HttpOption, ...]:
        rule = self._option(method, _HTTP)
        rules = () if rule is None else (rule, *rule.additional_bindings)
        return tuple(_http_option(each) for each in rules if each.WhichOneof("pattern"))

    def _has(self, owner: Any, extension: str) -> bool:
        """Return whether a singular option is set."""
        found = self._extension(extension)
        return found is not None and self._options(owner).HasExtension(found)

    def _option(self, owner: Any, extension: str) -> Any:
        found = self._extension(extension)
        return None if found is None else self._options(owner).Extensions[found]

    def _extension(self, name: str) -> Any:
        try:
            return self._pool.FindExtensionByName(name)
        except KeyError:  # no file of the set imports the option
            return None

    def _options(self, owner: Any) -> Any:
        """Return the options of the pool's own class, which parses the extensions of the pool."""
        options = owner.GetOptions()
        kind: Any = GetMessageClass(self._pool.FindMessageTypeByName(options.DESCRIPTOR.full_name))
        return kind.FromString(options.SerializeToString())

    @cached_property
    def _behavior_names(self) -> dict[int, str]:
        enum = self._pool.FindEnumTypeByName("google.api.FieldBehavior")
        return {value.number: value.name for value in enum.values}


def enum_name(message: Message, field: str) -> str:
    """Return the name of the value of an enum field; a number that the enum lacks as text."""
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    if enum is None:
        raise TypeError(f"{field} is not an enum")
    number = getattr(message, field)
    known = enum.values_by_number.get(number)
    return str(number) if known is None else known.name


def _values(option: Message | None) -> Mapping[str, Any]:
    """Return the fields that are set, by name; a contract of another version may lack some."""
    if option is None:
        return {}
    return {
        field.name: enum_name(option, field.name) if field.enum_type else value
        for field, value in option.ListFields()
    }


def _access(values: Mapping[str, Any]) -> Access | None:
    name = values.get("access", "ACCESS_UNSPECIFIED").removeprefix("ACCESS_")
    return None if name == "UNSPECIFIED" else Access(name)


def _http_option(rule: Any) -> HttpOption:
    verb = rule.WhichOneof("pattern")
    custom = verb == "custom"
    return HttpOption(
        verb=rule.custom.kind if custom else verb.upper(),
        template=rule.custom.path if custom else getattr(rule, verb),
        body=rule.body,
        response_body=rule.response_body,
        custom=custom,
    )
