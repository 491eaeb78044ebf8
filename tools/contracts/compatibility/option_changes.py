"""Rules on the options of postbus.options.v1, by their decisions.

An option without a decision breaks every audience when it changes, so that it gets one.
"""

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumValueDescriptor, MethodDescriptor

from postbus_runtime.options import Idempotency
from tools.contracts.compatibility.findings import Change
from tools.contracts.compatibility.kinds import Kind
from tools.contracts.compatibility.option_decisions import DECISIONS, MEANING, UNSET, Effect
from tools.contracts.compatibility.surface import Pair

__all__ = ["event_meaning", "event_options", "method_options", "reason_options"]

_UNSTORED: Final = "postbus.options.v1.MethodRules.secret_response"


def method_options(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield the effects of changed options of a method."""
    safe = pair.method_options()[1].idempotency is Idempotency.NO_SIDE_EFFECTS
    for option, before, after in _changed(pair):
        if not (safe and option == _UNSTORED):  # its reply is never stored
            yield from _effects(pair.after.full_name, option, before, after)


def event_meaning(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield the effects of changed options that give an event its meaning."""
    for option, before, after in _changed(pair):
        if option in MEANING or option not in DECISIONS:
            yield from _effects(pair.after.full_name, option, before, after)


def event_options(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield the effects of the other changed options of an event."""
    for option, before, after in _changed(pair):
        if option in DECISIONS and option not in MEANING:
            yield from _effects(pair.after.full_name, option, before, after)


def reason_options(pair: Pair[EnumValueDescriptor]) -> Iterator[Change]:
    """Yield the effects of changed options of a reason that had options."""
    if not pair.reason_options()[0].code:
        return
    name = f"{pair.after.type.full_name}.{pair.after.name}"
    for option, before, after in _changed(pair):
        yield from _effects(name, option, before, after)


def _changed(pair: Pair[Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield each changed option with its values before and after; None if it is unset."""
    old, new = pair.old.own_options(pair.before), pair.new.own_options(pair.after)
    for option in sorted(old.keys() | new.keys()):
        before, after = (values.get(option, UNSET.get(option)) for values in (old, new))
        if before != after:
            yield option, before, after


def _effects(name: str, option: str, before: Any, after: Any) -> Iterator[Change]:
    decision = DECISIONS.get(option)
    undecided = Effect(kind=Kind.OPTION_UNDECIDED)
    for effect in decision(before, after) if decision else [undecided]:
        yield Change(
            name=name,
            kind=effect.kind,
            detail="" if decision else option,
            before=_show(before),
            after=_show(after),
            breaks=effect.breaks,
            notice=effect.notice,
        )


def _show(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(value)
    return "none" if value is None else str(value).removeprefix("ACCESS_").removeprefix("SCOPE_")
