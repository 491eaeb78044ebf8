"""The comparison of two descriptor sets: every rule on every pair, for the pair's audiences."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from tools.contracts.compatibility.enum_changes import ENUM_RULES
from tools.contracts.compatibility.event_changes import removed_events, version_not_raised
from tools.contracts.compatibility.field_identity import paired_fields
from tools.contracts.compatibility.findings import (
    Audience,
    Breaks,
    Change,
    Direction,
    Finding,
    Use,
)
from tools.contracts.compatibility.kinds import Kind
from tools.contracts.compatibility.message_changes import FIELD_RULES, MESSAGE_RULES, same_type
from tools.contracts.compatibility.method_changes import METHOD_RULES, removed_methods
from tools.contracts.compatibility.option_changes import event_meaning, event_options
from tools.contracts.compatibility.reason_changes import (
    REASON_RULES,
    reason_uses,
    removed_reasons,
)
from tools.contracts.compatibility.record import Record
from tools.contracts.compatibility.route_changes import (
    ROUTE_RULES,
    removed_routes,
    shadowed_routes,
)
from tools.contracts.compatibility.rule_changes import (
    field_constraints,
    message_constraints,
    new_fields_required,
)
from tools.contracts.compatibility.surface import Pair, Route, Surface

__all__ = ["compare"]

Rules = Iterable[Callable[[Pair[Any]], Iterator[Change]]]
Uses = set[Use]

_IN_MESSAGE: Final[Rules] = (*MESSAGE_RULES, message_constraints, new_fields_required)
_IN_FIELD: Final[Rules] = (*FIELD_RULES, field_constraints)
_REQUEST, _RESPONSE = Direction.REQUEST, Direction.RESPONSE
_FIXED: Final = {
    "postbus.realtime.v1.ClientFrame": Use(Audience.WEBSOCKET, _REQUEST),
    "postbus.realtime.v1.ServerFrame": Use(Audience.WEBSOCKET, _RESPONSE),
    "postbus.bus.v1.Event": Use(Audience.CONSUMER, _RESPONSE),
    "postbus.bus.v1.Error": Use(Audience.REST, _RESPONSE),
}
"""Messages in use that no method names; problem details have the member names of Error."""
_ENVELOPES: Final = "postbus.bus."
"""The packages of which workers write and read every message."""


def compare(before: bytes, after: bytes) -> list[Finding]:
    """Return the changes from `before` to `after`, in no order.

    Raises the errors of Surface.
    """
    comparison = _Comparison(Surface(before), Surface(after))
    comparison.routes()
    comparison.methods()
    comparison.reasons()
    comparison.fixed()
    comparison.contents()
    comparison.events()
    return comparison.findings()


class _Comparison:
    """Collects the uses of messages, then the changes with the uses that they break."""

    def __init__(self, old: Surface, new: Surface) -> None:
        self._old, self._new = old, new
        self._contents: dict[tuple[str, str], tuple[Pair[Any], Uses]] = {}
        self._record = Record(old, new)

    def routes(self) -> None:
        """Compare the routes of REST clients, for which the names of methods do not matter."""
        rest = {Use(Audience.REST, _REQUEST)}
        self._record.add(removed_routes(self._old, self._new), rest)
        self._record.add(shadowed_routes(self._old, self._new), rest)
        for key, before in self._old.routes.items():
            if key in self._new.routes and not self._old.is_internal(before.method):
                pair = Pair(self._old, self._new, before, self._new.routes[key])
                self._apply(ROUTE_RULES, pair, rest)
                self._apply(METHOD_RULES, pair.of(before.method, pair.after.method), rest)
                self._route_messages(pair)

    def _route_messages(self, pair: Pair[Route]) -> None:
        before, after = pair.before, pair.after
        request, response = Use(Audience.REST, _REQUEST), Use(Audience.REST, _RESPONSE)
        self._use(pair.of(before.method.input_type, after.method.input_type), {request})
        if before.response_body != after.response_body:
            return
        if not before.response_body:
            self._use(pair.of(before.method.output_type, after.method.output_type), {response})
            return
        old, new = _response_body(before), _response_body(after)
        if old and new:  # the field is the body: its name is not sent
            self._apply(_IN_FIELD, pair.of(old, new), {response})
            self._use_type(pair.of(old, new), {response})

    def methods(self) -> None:
        """Compare the methods of WebSocket clients and workers, by routing key."""
        self._record.add_each(removed_methods(self._old, self._new), self._callers)
        for name, before in self._old.methods.items():
            if name in self._new.methods:
                pair = Pair(self._old, self._new, before, self._new.methods[name])
                audiences = self._callers(name)
                self._apply(METHOD_RULES, pair, audiences)
                self._use(pair.of(before.input_type, pair.after.input_type), audiences)
                readers = {Use(use.audience, _RESPONSE) for use in audiences}
                self._use(pair.of(before.output_type, pair.after.output_type), readers)

    def _callers(self, method: str) -> Uses:
        internal = self._old.is_internal(self._old.methods[method])
        websocket = set() if internal else {Use(Audience.WEBSOCKET, _REQUEST)}
        return {Use(Audience.WORKER, _REQUEST)} | websocket

    def reasons(self) -> None:
        """Compare the reasons of errors, which are texts in errors: their numbers do not matter."""
        for name, change in removed_reasons(self._old, self._new):
            self._record.add([change], reason_uses(self._old, name))
        for name, before in self._old.reasons.items():
            if name in self._new.reasons:
                pair = Pair(self._old, self._new, before, self._new.reasons[name])
                uses = reason_uses(self._old, name) | reason_uses(self._new, name)
                self._apply(REASON_RULES, pair, uses)

    def fixed(self) -> None:
        """Compare frames and envelopes."""
        for name, before in self._old.messages.items():
            uses = _fixed_uses(name)
            if uses and name in self._new.messages:
                self._use(Pair(self._old, self._new, before, self._new.messages[name]), uses)
            elif uses:
                removed = Change(name=name, kind=Kind.MESSAGE_REMOVED, before=name, after="removed")
                self._record.add([removed], uses)

    def contents(self) -> None:
        """Compare messages and enums, events included, after all their uses are known."""
        for pair in self._event_pairs():
            self._use(pair, self._subscribers(pair.before.full_name))
        for pair, uses in self._contents.values():
            is_enum = isinstance(pair.before, EnumDescriptor)
            self._apply(ENUM_RULES if is_enum else _IN_MESSAGE, pair, uses)
            for field, same_for in _fields(pair):
                self._apply(_IN_FIELD, field, set(filter(same_for, uses)))

    def events(self) -> None:
        """Compare the events of consumers and of WebSocket clients that subscribe."""
        self._record.add_each(removed_events(self._old, self._new), self._subscribers)
        for pair in self._event_pairs():
            self._apply([event_meaning], pair, self._subscribers(pair.before.full_name))
        broken = self._record.broken_events()
        for pair in self._event_pairs():
            name = pair.before.full_name
            self._apply([event_options], pair, self._subscribers(name))
            self._record.add(version_not_raised(pair), broken.get(name, set()))

    def _subscribers(self, event: str) -> Uses:
        outside = self._old.is_client_visible(self._old.events[event])
        audiences = [Audience.CONSUMER, *([Audience.WEBSOCKET] if outside else [])]
        return {Use(audience, _RESPONSE, event) for audience in audiences}

    def _event_pairs(self) -> list[Pair[Descriptor]]:
        old, new = self._old.events, self._new.events
        return [Pair(self._old, self._new, old[name], new[name]) for name in old if name in new]

    def findings(self) -> list[Finding]:
        """Return all changes, each once."""
        return self._record.findings()

    def _use(self, pair: Pair[Any], uses: Uses) -> None:
        """Add uses to a message and, recursively, to the types of its fields."""
        key = pair.before.full_name, pair.after.full_name
        _, known = self._contents.setdefault(key, (pair, set()))
        if uses <= known:
            return
        known |= uses
        for field, same_for in _fields(pair):
            self._use_type(field, set(filter(same_for, uses)))

    def _use_type(self, pair: Pair[FieldDescriptor], uses: Uses) -> None:
        """Add uses to the message or enum of a field."""
        before, after = (each.message_type or each.enum_type for each in (pair.before, pair.after))
        if before and same_type(pair):
            self._use(pair.of(before, after), uses)

    def _apply(self, rules: Rules, pair: Pair[Any], uses: Uses) -> None:
        for rule in rules:
            self._record.add(rule(pair), uses)


def _fields(pair: Pair[Any]) -> Iterable[tuple[Pair[FieldDescriptor], Breaks]]:
    """Return the paired fields of a message; an enum has none."""
    return paired_fields(pair) if isinstance(pair.before, Descriptor) else ()


def _fixed_uses(name: str) -> Uses:
    """Return the uses of a frame or envelope that hold without a method."""
    uses = {_FIXED[name]} if name in _FIXED else set()
    if name.startswith(_ENVELOPES):
        uses |= {Use(Audience.WORKER, _REQUEST), Use(Audience.WORKER, _RESPONSE)}
    return uses


def _response_body(route: Route) -> FieldDescriptor | None:
    """Return the field of the response that is the body of a route."""
    return route.method.output_type.fields_by_name.get(route.response_body)
