"""The comparison of two descriptor sets: every rule on every pair, for the pair's audiences."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from tools.contracts.compatibility.enum_changes import ENUM_RULES
from tools.contracts.compatibility.event_changes import (
    EVENT_RULES,
    removed_events,
    version_not_raised,
)
from tools.contracts.compatibility.findings import Audience, Change, Direction, Finding, Use
from tools.contracts.compatibility.message_changes import FIELD_RULES, MESSAGE_RULES, same_type
from tools.contracts.compatibility.method_changes import METHOD_RULES, removed_methods
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
    "postbus.bus.v1.Request": Use(Audience.WORKER, _REQUEST),
    "postbus.bus.v1.Reply": Use(Audience.WORKER, _RESPONSE),
    "postbus.bus.v1.Event": Use(Audience.CONSUMER, _RESPONSE),
    "postbus.bus.v1.Error": Use(Audience.REST, _RESPONSE),
}
"""Messages in use that no method names; problem details have the member names of Error."""


def compare(before: bytes, after: bytes) -> list[Finding]:
    """Return the changes from `before` to `after`, in no order.

    Raises the errors of Surface.
    """
    comparison = _Comparison(Surface(before), Surface(after))
    comparison.routes()
    comparison.methods()
    comparison.fixed()
    comparison.contents()
    comparison.events()
    return comparison.findings()


class _Comparison:
    """Collects the uses of messages, then the changes with the uses that they break."""

    def __init__(self, old: Surface, new: Surface) -> None:
        self._old, self._new = old, new
        self._contents: dict[tuple[str, str], tuple[Pair[Any], Uses]] = {}
        self._broken: dict[tuple[str, str, str, str, bool], Uses] = defaultdict(set)

    def routes(self) -> None:
        """Compare the routes of REST clients, for which the names of methods do not matter."""
        rest = {Use(Audience.REST, _REQUEST)}
        self._record(removed_routes(self._old, self._new), rest)
        self._record(shadowed_routes(self._old, self._new), rest)
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
        bodies = _response_body(before), _response_body(after)
        if before.response_body == after.response_body and all(bodies):
            self._use(pair.of(*bodies), {response})

    def methods(self) -> None:
        """Compare the methods of WebSocket clients and workers, by routing key."""
        self._record_each(removed_methods(self._old, self._new), self._callers)
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

    def fixed(self) -> None:
        """Compare frames and envelopes."""
        for name, use in _FIXED.items():
            if name in self._old.messages and name in self._new.messages:
                messages = self._old.messages[name], self._new.messages[name]
                self._use(Pair(self._old, self._new, *messages), {use})

    def contents(self) -> None:
        """Compare messages and enums, events included, after all their uses are known."""
        for pair in self._event_pairs():
            self._use(pair, self._subscribers(pair.before.full_name))
        for pair, uses in self._contents.values():
            is_enum = isinstance(pair.before, EnumDescriptor)
            self._apply(ENUM_RULES if is_enum else _IN_MESSAGE, pair, uses)
            for field in _fields(pair):
                self._apply(_IN_FIELD, field, uses)

    def events(self) -> None:
        """Compare the events of consumers and of WebSocket clients that subscribe."""
        self._record_each(removed_events(self._old, self._new), self._subscribers)
        broken = {
            use.event for (*_, notice), uses in self._broken.items() if not notice for use in uses
        }
        for pair in self._event_pairs():
            name = pair.before.full_name
            self._apply(EVENT_RULES, pair, self._subscribers(name))
            if name in broken:
                self._record(version_not_raised(pair), self._subscribers(name))

    def _subscribers(self, event: str) -> Uses:
        outside = self._old.is_client_visible(self._old.events[event])
        audiences = [Audience.CONSUMER, *([Audience.WEBSOCKET] if outside else [])]
        return {Use(audience, _RESPONSE, event) for audience in audiences}

    def _event_pairs(self) -> list[Pair[Descriptor]]:
        old, new = self._old.events, self._new.events
        return [Pair(self._old, self._new, old[name], new[name]) for name in old if name in new]

    def findings(self) -> list[Finding]:
        """Return all changes, each once."""
        return [
            Finding(
                where=self._new.position(name) or self._old.position(name),
                text=f"{name}: {kind}: {before} -> {after}",
                audiences=frozenset(use.audience for use in uses),
                notice=notice,
            )
            for (name, kind, before, after, notice), uses in self._broken.items()
        ]

    def _use(self, pair: Pair[Any], uses: Uses) -> None:
        """Add uses to a message and, recursively, to the types of its fields."""
        key = pair.before.full_name, pair.after.full_name
        _, known = self._contents.setdefault(key, (pair, set()))
        if uses <= known:
            return
        known |= uses
        for field in _fields(pair):
            before, after = field.before, field.after
            if same_type(field) and (before.message_type or before.enum_type):
                types = (field.message_type or field.enum_type for field in (before, after))
                self._use(pair.of(*types), uses)

    def _apply(self, rules: Rules, pair: Pair[Any], uses: Uses) -> None:
        for rule in rules:
            self._record(rule(pair), uses)

    def _record_each(self, changes: Iterable[Change], users: Callable[[str], Uses]) -> None:
        for change in changes:
            self._record([change], users(change.name))

    def _record(self, changes: Iterable[Change], uses: Uses) -> None:
        for change in changes:
            broken = {use for use in uses if change.breaks(use)}
            if broken:
                key = change.name, change.kind, change.before, change.after, change.notice
                self._broken[key] |= broken


def _fields(pair: Pair[Any]) -> Iterator[Pair[FieldDescriptor]]:
    """Yield the fields that a message has before and after, by number; an enum has none."""
    if isinstance(pair.before, Descriptor):
        for field in pair.before.fields:
            if field.number in pair.after.fields_by_number:
                yield pair.of(field, pair.after.fields_by_number[field.number])


def _response_body(route: Route) -> Descriptor | None:
    """Return the message in the response body of a route."""
    if not route.response_body:
        return route.method.output_type
    field = route.method.output_type.fields_by_name.get(route.response_body)
    return field.message_type if field else None
