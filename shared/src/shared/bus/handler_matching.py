"""Compare the handlers of a worker with its methods in the contract."""

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
"""The methods of the package postbus.bus are served by every worker, on a route of its own."""

Handler = Callable[[Any, Context], Any]
"""A coroutine function; for a streaming method an async generator function."""


class ContractMismatchError(Exception):
    """Raised if the handlers of a worker are not those of its methods and of known events."""


def handlers_of(owner: object) -> list[Handler]:
    """Return the coroutine and async generator methods of an object.

    They are listed from its class: Python 3.11.2 cannot list the members of an object with slots.
    """
    return [getattr(owner, name) for name, _ in inspect.getmembers(type(owner), _is_handler)]


def _is_handler(member: object) -> bool:
    return inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)


def routes_of(worker: str) -> dict[str, Method]:
    """Return the methods of `worker` and of every worker, by their routes at this worker."""
    own = {method.name: method for method in METHODS.values() if method.worker == worker}
    every = {f"{m.name}.{worker}": m for m in METHODS.values() if m.worker == EVERY_WORKER}
    return own | every


def require_match(worker: str, handlers: Iterable[object], served: Iterable[str]) -> None:
    """Raise ContractMismatchError unless `handlers` serve exactly the methods of `worker`."""
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
            f"handlers of methods of other workers: {foreign or 'none'}"
        )
