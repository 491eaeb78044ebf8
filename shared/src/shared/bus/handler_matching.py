"""What a worker serves: the handlers of its objects against the methods of its contract."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from postbus.registry import METHODS, Method
from shared.bus.decorators import method_handler
from shared.context import Context

__all__ = [
    "EVERY_WORKER",
    "ContractMismatchError",
    "Handler",
    "handlers_of",
    "require_match",
    "routes_of",
]

EVERY_WORKER = "bus"
"""Methods of the package postbus.bus are served by each worker for itself."""

Handler = Callable[[Any, Context], Any]
"""A coroutine function, or an async generator function where the method streams."""


class ContractMismatchError(Exception):
    """The handlers of a worker are not those that the contract asks for."""


def handlers_of(owner: object) -> list[Handler]:
    """Return the methods of an object that may handle something.

    They are looked for in its class: Python 3.11.2 can't list the members of an object with slots.
    """
    return [getattr(owner, name) for name, _ in inspect.getmembers(type(owner), _is_handler)]


def _is_handler(member: object) -> bool:
    return inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)


def routes_of(worker: str) -> dict[str, Method]:
    """The routes of `worker`: its own methods, and under its name those of every worker."""
    own = {method.name: method for method in METHODS.values() if method.worker == worker}
    every = {f"{m.name}.{worker}": m for m in METHODS.values() if m.worker == EVERY_WORKER}
    return own | every


def require_match(worker: str, handlers: Iterable[object], served: Iterable[str]) -> None:
    missing = sorted(routes_of(worker).keys() - set(served))
    ours = {method.handler for method in routes_of(worker).values()}
    foreign = sorted(
        handles
        for owner in handlers
        for function in handlers_of(owner)
        if (handles := method_handler(function)) and handles not in ours
    )
    if missing or foreign:
        raise ContractMismatchError(
            f"worker {worker!r}: methods without a handler: {missing or 'none'}; "
            f"handlers of methods that are not its own: {foreign or 'none'}"
        )
