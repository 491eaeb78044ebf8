"""Two descriptor sets side by side: every rule on everything that both have, for its users."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from tools.contracts.compatibility.event_changes import (
    EVENT_RULES,
    removed_events,
    version_not_raised,
)
from tools.contracts.compatibility.findings import Audience, Change, Direction, Finding, Use
from tools.contracts.compatibility.message_changes import (
    ENUM_RULES,
    FIELD_RULES,
    MESSAGE_RULES,
    same_type,
)
from tools.contracts.compatibility.method_changes import (
    METHOD_RULES,
    ROUTE_RULES,
    captured_routes,
    removed_methods,
    removed_routes,
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
_ASKED, _ANSWERED = Direction.ASKED, Direction.ANSWERED
_FIXED: Final = {
    "postbus.realtime.v1.ClientFrame": Use(Audience.WEBSOCKET, _ASKED),
    "postbus.realtime.v1.ServerFrame": Use(Audience.WEBSOCKET, _ANSWERED),
    "postbus.bus.v1.Request": Use(Audience.WORKER, _ASKED),
    "postbus.bus.v1.Reply": Use(Audience.WORKER, _ANSWERED),
    "postbus.bus.v1.Event": Use(Audience.CONSUMER, _ANSWERED),
    "postbus.bus.v1.Error": Use(Audience.REST, _ANSWERED),
}
"""Messages that are used without being named by a method; problem details show Error's names."""


def compare(before: bytes, after: bytes) -> list[Finding]:
    """Return what of `after` breaks those who rely on `before`, in no order.

    Raises what Surface raises.
    """
    comparison = _Comparison(Surface(before), Surface(after))
    comparison.routes()
    comparison.methods()
    comparison.fixed()
    comparison.contents()
    comparison.events()
    return comparison.findings()


class _Comparison:
    """Gathers who uses which messages, then what breaks whom."""

    def __init__(self, old: Surface, new: Surface) -> None:
        self._old, self._new = old, new
        self._contents: dict[tuple[str, str], tuple[Pair[Any], Uses]] = {}
        self._broken: dict[tuple[str, str, str, str, bool], Uses] = defaultdict(set)

    def routes(self) -> None:
        """What REST clients see, whatever the methods are called."""
        rest = {Use(Audience.REST, _ASKED)}
        self._note(removed_routes(self._old, self._new), rest)
        self._note(captured_routes(self._old, self._new), rest)
        for key, before in self._old.routes.items():
            if key in self._new.routes and not self._old.is_internal(before.method):
                pair = Pair(self._old, self._new, before, self._new.routes[key])
                self._apply(ROUTE_RULES, pair, rest)
                self._apply(METHOD_RULES, pair.of(before.method, pair.after.method), rest)
                self._route_messages(pair)

    def _route_messages(self, pair: Pair[Route]) -> None:
        before, after = pair.before, pair.after
        asked, answered = Use(Audience.REST, _ASKED), Use(Audience.REST, _ANSWERED)
        self._use(pair.of(before.method.input_type, after.method.input_type), {asked})
        answers = _answer(before), _answer(after)
        if before.response_body == after.response_body and all(answers):
            self._use(pair.of(*answers), {answered})

    def methods(self) -> None:
        """What WebSocket clients and workers see, by routing key."""
        self._note_each(removed_methods(self._old, self._new), self._callers)
        for name, before in self._old.methods.items():
            if name in self._new.methods:
                pair = Pair(self._old, self._new, before, self._new.methods[name])
                audiences = self._callers(name)
                self._apply(METHOD_RULES, pair, audiences)
                self._use(pair.of(before.input_type, pair.after.input_type), audiences)
                answered = {Use(use.audience, _ANSWERED) for use in audiences}
                self._use(pair.of(before.output_type, pair.after.output_type), answered)

    def _callers(self, method: str) -> Uses:
        internal = self._old.is_internal(self._old.methods[method])
        websocket = set() if internal else {Use(Audience.WEBSOCKET, _ASKED)}
        return {Use(Audience.WORKER, _ASKED)} | websocket

    def fixed(self) -> None:
        """Frames and envelopes."""
        for name, use in _FIXED.items():
            if name in self._old.messages and name in self._new.messages:
                messages = self._old.messages[name], self._new.messages[name]
                self._use(Pair(self._old, self._new, *messages), {use})

    def contents(self) -> None:
        """Messages and enums, after everyone who uses them is known; those of events too."""
        for pair in self._event_pairs():
            self._use(pair, self._hearers(pair.before.full_name))
        for pair, uses in self._contents.values():
            is_enum = isinstance(pair.before, EnumDescriptor)
            self._apply(ENUM_RULES if is_enum else _IN_MESSAGE, pair, uses)
            for field in _fields(pair):
                self._apply(_IN_FIELD, field, uses)

    def events(self) -> None:
        """What event consumers see, and WebSocket clients that subscribe."""
        self._note_each(removed_events(self._old, self._new), self._hearers)
        broken = {
            use.event for (*_, notice), uses in self._broken.items() if not notice for use in uses
        }
        for pair in self._event_pairs():
            name = pair.before.full_name
            self._apply(EVENT_RULES, pair, self._hearers(name))
            if name in broken:
                self._note(version_not_raised(pair), self._hearers(name))

    def _hearers(self, event: str) -> Uses:
        outside = self._old.is_heard_outside(self._old.events[event])
        audiences = [Audience.CONSUMER, *([Audience.WEBSOCKET] if outside else [])]
        return {Use(audience, _ANSWERED, event) for audience in audiences}

    def _event_pairs(self) -> list[Pair[Descriptor]]:
        old, new = self._old.events, self._new.events
        return [Pair(self._old, self._new, old[name], new[name]) for name in old if name in new]

    def findings(self) -> list[Finding]:
        """Everything noted, each change once."""
        return [
            Finding(
                where=self._new.place(name) or self._old.place(name),
                text=f"{name}: {what}: {before} -> {after}",
                audiences=frozenset(use.audience for use in uses),
                notice=notice,
            )
            for (name, what, before, after, notice), uses in self._broken.items()
        ]

    def _use(self, pair: Pair[Any], uses: Uses) -> None:
        """Add users to a message and to all that it holds."""
        key = pair.before.full_name, pair.after.full_name
        _, known = self._contents.setdefault(key, (pair, set()))
        if uses <= known:
            return
        known |= uses
        for field in _fields(pair):
            before, after = field.before, field.after
            if same_type(field) and (before.message_type or before.enum_type):
                held = before.message_type or before.enum_type
                holds = after.message_type or after.enum_type
                self._use(pair.of(held, holds), uses)

    def _apply(self, rules: Rules, pair: Pair[Any], uses: Uses) -> None:
        for rule in rules:
            self._note(rule(pair), uses)

    def _note_each(self, changes: Iterable[Change], users: Callable[[str], Uses]) -> None:
        for change in changes:
            self._note([change], users(change.name))

    def _note(self, changes: Iterable[Change], uses: Uses) -> None:
        for change in changes:
            broken = {use for use in uses if change.breaks(use)}
            if broken:
                key = change.name, change.what, change.before, change.after, change.notice
                self._broken[key] |= broken


def _fields(pair: Pair[Any]) -> Iterator[Pair[FieldDescriptor]]:
    """The fields that a message has before and after, by number; an enum has none."""
    if isinstance(pair.before, Descriptor):
        for field in pair.before.fields:
            if field.number in pair.after.fields_by_number:
                yield pair.of(field, pair.after.fields_by_number[field.number])


def _answer(route: Route) -> Descriptor | None:
    """The message in the body of a route's answer."""
    if not route.response_body:
        return route.method.output_type
    field = route.method.output_type.fields_by_name.get(route.response_body)
    return field.message_type if field else None
