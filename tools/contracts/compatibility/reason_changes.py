"""Rules on reasons of errors: every audience gets them by name, with a code and an HTTP status."""

from collections.abc import Iterator

from google.protobuf.descriptor import EnumValueDescriptor

from postbus_runtime.options import ReasonOptions
from postbus_runtime.reasons import HTTP_STATUSES, Scope
from tools.contracts.compatibility.findings import Audience, Change, Direction, Use, rest
from tools.contracts.compatibility.kinds import Kind
from tools.contracts.compatibility.option_changes import reason_options
from tools.contracts.compatibility.surface import Pair, Surface

__all__ = ["REASON_RULES", "reason_uses", "removed_reasons"]

_AUDIENCES = {
    Scope.NAMED: (),
    Scope.CALL: (Audience.REST, Audience.WEBSOCKET, Audience.WORKER),
    Scope.HTTP: (Audience.REST,),
    Scope.WEBSOCKET: (Audience.WEBSOCKET,),
    Scope.BUS: (Audience.WORKER, Audience.CONSUMER),
}
"""The audiences of a reason that no method names."""


def removed_reasons(old: Surface, new: Surface) -> Iterator[tuple[str, Change]]:
    """Yield the names of removed reasons with their changes; a reason may move to another enum."""
    for name, value in old.reasons.items():
        if name not in new.reasons:
            full = f"{value.type.full_name}.{value.name}"
            yield name, Change(name=full, kind=Kind.REASON_REMOVED, before=name, after="removed")


def reason_uses(surface: Surface, name: str) -> set[Use]:
    """Return the uses of a reason: by its scope, and by the methods that name it."""
    audiences = set(_AUDIENCES[surface.reason_options(surface.reasons[name]).scope])
    for method in surface.methods.values():
        options = surface.method_options(method)
        if name in options.reasons:
            audiences.add(Audience.WORKER)
            if not surface.is_internal(method):
                audiences.add(Audience.WEBSOCKET)
                audiences |= {Audience.REST} if options.http else set()
    return {Use(audience, Direction.RESPONSE) for audience in audiences}


def _status(pair: Pair[EnumValueDescriptor]) -> Iterator[Change]:
    """Yield another HTTP status of a reason that has the same code."""
    old, new = pair.reason_options()
    before, after = _http_status(old), _http_status(new)
    if old.code == new.code and before != after:
        yield Change(
            name=f"{pair.after.type.full_name}.{pair.after.name}",
            kind=Kind.REASON_STATUS_CHANGED,
            before=str(before),
            after=str(after),
            breaks=rest,
        )


def _http_status(options: ReasonOptions) -> int | None:
    return options.http_status or HTTP_STATUSES.get(options.code)


REASON_RULES = (_status, reason_options)
