"""Match the handlers of a worker with its methods and events in the contract."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from postbus.registry import EVENTS, METHODS, Method
from shared.bus.consumed_event import ConsumedEvent
from shared.bus.decorators import event_type, method_handler
from shared.bus.handler_metrics import Statistics
from shared.bus.handler_types import type_fault
from shared.bus.served_method import Handler, ServedMethod

__all__ = [
    "WORKERS",
    "ContractMismatchError",
    "consumed_events",
    "served_methods",
]

T = TypeVar("T")

_EVERY_WORKER = "bus"
"""`Method.worker` of the methods that every worker serves (package postbus.bus). Their routes end
with the name of the worker."""
WORKERS: Final = sorted({method.worker for method in METHODS.values()} - {_EVERY_WORKER})
"""The names of all workers."""


class ContractMismatchError(Exception):
    """Raised if a worker lacks a handler, or has one of an unknown method or event."""


def _handlers_of(owner: object) -> list[Handler]:
    """Return the coroutine and async generator methods of an object.

    They are listed from its class: Python 3.11.2 cannot list the members of an object with slots.
    """
    return [getattr(owner, name) for name, _ in inspect.getmembers(type(owner), _is_handler)]


def _is_handler(member: object) -> bool:
    return inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)


def _routes_of(worker: str) -> dict[str, Method]:
    """Return the methods of `worker` and of every worker, by their routes at this worker."""
    own = {method.name: method for method in METHODS.values() if method.worker == worker}
    every = {f"{m.name}.{worker}": m for m in METHODS.values() if m.worker == _EVERY_WORKER}
    return own | every


def served_methods(
    worker: str, owners: Sequence[object], statistics: Statistics
) -> dict[str, ServedMethod]:
    """Return the methods of `worker` with their handlers in `owners`, by route.

    Raises ContractMismatchError if a handler is missing, ambiguous, of another worker, not an
    async generator as streaming methods need, or annotated with other types than its method.
    """
    served: dict[str, ServedMethod] = {}
    routes = _routes_of(worker)
    foreign = []
    for function, handles in _marked(owners, method_handler):
        names = [route for route, method in routes.items() if method.handler == handles]
        foreign += [] if names else [handles]
        for name in names:
            method = routes[name]
            if method.streams != inspect.isasyncgenfunction(function):
                raise ContractMismatchError(f"{name}: only streams are async generators")
            _require_types(name, function, method.request, method.response, streams=method.streams)
            handled = ServedMethod(name, method, function, statistics.of(name))
            _add_once(served, name, handled)
    missing = sorted(routes.keys() - served.keys())
    if missing or foreign:
        raise ContractMismatchError(
            f"worker {worker!r}: methods without a handler: {missing or 'none'}; "
            f"handlers of methods of other workers: {sorted(foreign) or 'none'}"
        )
    return served


def consumed_events(
    worker: str, owners: Sequence[object], statistics: Statistics
) -> dict[str, ConsumedEvent]:
    """Return the events that `owners` consume, by type.

    Raises ContractMismatchError for a message that is not an event, for a second consumer, and for
    one that is annotated with other types.
    """
    types = {event.message: event for event in EVENTS.values()}
    consumed: dict[str, ConsumedEvent] = {}
    for function, message in _marked(owners, event_type):
        event = types.get(message)
        if event is None:
            raise ContractMismatchError(f"{message.__name__} is not an event of the contract")
        _require_types(event.name, function, message, None)
        handled = ConsumedEvent(worker, event, function, statistics.of(event.name))
        _add_once(consumed, event.name, handled)
    return consumed


def _require_types(
    name: str, function: Handler, request: type, response: type | None, *, streams: bool = False
) -> None:
    if fault := type_fault(function, request=request, response=response, streams=streams):
        raise ContractMismatchError(f"{name}: the handler {fault}")


def _marked(
    owners: Sequence[object], mark: Callable[[object], T | None]
) -> Iterator[tuple[Handler, T]]:
    """Yield the methods of `owners` with a decorator, and the value that it has set."""
    for owner in owners:
        for function in _handlers_of(owner):
            value = mark(function)
            if value is not None:
                yield function, value


def _add_once(handlers: dict[str, T], name: str, handler: T) -> None:
    if name in handlers:
        raise ContractMismatchError(f"{name} has two handlers")
    handlers[name] = handler
