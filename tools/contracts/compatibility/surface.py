"""The public surface of a descriptor set: methods, routes, messages and events."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import (
    Descriptor,
    EnumValueDescriptor,
    FieldDescriptor,
    MethodDescriptor,
)
from google.protobuf.message import Message
from protovalidate import Violation

from postbus_runtime.options import (
    Access,
    EventOptions,
    MethodOptions,
    ReasonOptions,
    enum_name,
)
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.empty_messages import EmptyMessages
from tools.contracts.generate.reasons import reason_values

__all__ = ["Pair", "Route", "Surface"]

T = TypeVar("T")
U = TypeVar("U")

_OWN_OPTIONS = "postbus.options."
_PARAMETER = re.compile(r"\{([^}=]+)(?:=([^}]+))?\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One HTTP binding of a method."""

    verb: str
    path: str
    body: str
    response_body: str
    method: MethodDescriptor

    @property
    def url(self) -> str:
        """The path with wildcards in place of its parameters: `/v1/posts/*`."""
        return _PARAMETER.sub(lambda match: match[2] or "*", self.path)

    @property
    def template(self) -> str:
        """The path with `{}` for each wildcard, by which the gateway orders its routes."""
        return self.url.replace("*", "{}")

    @property
    def parameters(self) -> list[str]:
        """The fields in the path, in its order."""
        return [match[1] for match in _PARAMETER.finditer(self.path)]

    @property
    def patterns(self) -> list[str]:
        """The fields in the path with their segments, `id=orders/*`, which name the parameters."""
        return [f"{match[1]}={match[2] or '*'}" for match in _PARAMETER.finditer(self.path)]

    def __str__(self) -> str:
        return f"{self.verb} {self.path}"

    def matches(self, url: str) -> bool:
        """Return whether the route matches a URL, if no other route has precedence."""
        parts = {"**": ".+", "*": "[^/]+"}
        pattern = "".join(
            parts.get(part, re.escape(part)) for part in re.split(r"(\*\*?)", self.url)
        )
        return re.fullmatch(pattern, url) is not None


class Surface:
    """Methods, routes, messages, events and source positions of one descriptor set.

    Raises DecodeError or TypeError if the bytes are not a descriptor set, ValueError if it has no
    contracts.
    """

    def __init__(self, descriptor_set: bytes) -> None:
        self._contracts = Contracts(descriptor_set)
        self._empty = EmptyMessages(self._contracts)
        if not self._contracts.files:
            raise ValueError("no contracts below postbus/")

    @cached_property
    def methods(self) -> dict[str, MethodDescriptor]:
        """Every method, by full name: its routing key."""
        return {method.full_name: method for method in self._contracts.methods}

    @cached_property
    def messages(self) -> dict[str, Descriptor]:
        """Every message, by full name."""
        return {message.full_name: message for message in self._contracts.messages}

    @cached_property
    def events(self) -> dict[str, Descriptor]:
        """Every event, by full name: its routing key."""
        return {name: self.messages[name] for name in self._contracts.event_options}

    @cached_property
    def reasons(self) -> dict[str, EnumValueDescriptor]:
        """Every reason of errors, by its name in errors: `POST_NOT_FOUND`."""
        return dict(reason_values(self._contracts))

    @cached_property
    def routes(self) -> dict[str, Route]:
        """Every HTTP binding, by verb and URL."""
        return {
            f"{route.verb} {route.url}": route
            for method in self.methods.values()
            for route in self._routes(method)
        }

    def method_options(self, method: MethodDescriptor) -> MethodOptions:
        """Return the options of a method."""
        return self._contracts.method_options[method.full_name]

    def event_options(self, event: Descriptor) -> EventOptions:
        """Return the options of an event."""
        return self._contracts.event_options[event.full_name]

    def reason_options(self, reason: EnumValueDescriptor) -> ReasonOptions:
        """Return the options of a reason."""
        return self._contracts.options.reason(reason)

    def is_internal(self, method: MethodDescriptor) -> bool:
        """Return whether a method is not reachable through the gateway."""
        return self.method_options(method).access is Access.INTERNAL

    def is_client_visible(self, event: Descriptor) -> bool:
        """Return whether clients may receive an event through the gateway."""
        return self.event_options(event).access is not Access.INTERNAL

    def behaviors(self, field: FieldDescriptor) -> frozenset[str]:
        """Return the names in `google.api.field_behavior`, such as `REQUIRED`."""
        return self._contracts.options.behaviors(field)

    def foreign_option(self, owner: Any, extension: str) -> Any:
        """Return an option of another package; None if the set does not define it."""
        return self._contracts.options.foreign(owner, extension)

    def violations_of_empty(self, message: Descriptor) -> Sequence[Violation]:
        """Return the rules that an empty message breaks; CompilationError if one is faulty."""
        return self._empty.violations(message)

    def own_options(self, owner: Any) -> dict[str, Any]:
        """Return the options of postbus.options that are set, each by the name of its field.

        The name is full: `postbus.options.v1.MethodRules.access`. Enums are names of values,
        messages and lists are texts.
        """
        options = self._contracts.pool.FindMessageTypeByName(
            owner.GetOptions().DESCRIPTOR.full_name
        )
        values: dict[str, Any] = {}
        for extension in self._contracts.pool.FindAllExtensions(options):
            if extension.full_name.startswith(_OWN_OPTIONS):
                values |= _set_fields(self.foreign_option(owner, extension.full_name))
        return values

    def position(self, name: str) -> str:
        """Return `proto/FILE:LINE` of a descriptor or of its parent; "" without source info."""
        while name and not (position := self._contracts.position(name)):
            name = name.rpartition(".")[0]
        return position if name else ""

    def _routes(self, method: MethodDescriptor) -> Iterator[Route]:
        for option in self.method_options(method).http:
            yield Route(
                verb=option.verb,
                path=option.template,
                body=option.body,
                response_body=option.response_body,
                method=method,
            )


def _set_fields(rules: Message) -> dict[str, Any]:
    return {field.full_name: _plain(rules, field, value) for field, value in rules.ListFields()}


def _plain(rules: Message, field: FieldDescriptor, value: Any) -> Any:
    """Return a value that can be compared with that of another descriptor set."""
    if field.is_repeated:
        return tuple(str(each) for each in value)
    if field.message_type:
        return str(value)
    return enum_name(rules, field.name) if field.enum_type else value


@dataclass(frozen=True, slots=True)
class Pair(Generic[T]):
    """The same part of the contract in both descriptor sets."""

    old: Surface
    new: Surface
    before: T
    after: T

    def of(self, before: U, after: U) -> "Pair[U]":
        """Return a pair of other parts in the same sets."""
        return Pair(self.old, self.new, before, after)

    def method_options(self: "Pair[MethodDescriptor]") -> tuple[MethodOptions, MethodOptions]:
        """Return the options of a method, before and after."""
        return self.old.method_options(self.before), self.new.method_options(self.after)

    def reason_options(
        self: "Pair[EnumValueDescriptor]",
    ) -> tuple[ReasonOptions, ReasonOptions]:
        """Return the options of a reason, before and after."""
        return self.old.reason_options(self.before), self.new.reason_options(self.after)

    def event_options(self: "Pair[Descriptor]") -> tuple[EventOptions, EventOptions]:
        """Return the options of an event, before and after."""
        return self.old.event_options(self.before), self.new.event_options(self.after)
