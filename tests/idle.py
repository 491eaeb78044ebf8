"""Handlers with empty responses: a worker starts only with a handler for every method."""

import importlib
from typing import Any, TypeVar

from postbus.registry import METHODS, Method
from shared.bus import MessagePattern
from shared.bus.decorators import method_handler
from shared.context import Context

__all__ = ["complete"]

C = TypeVar("C", bound=type)


def complete(handlers: C) -> C:
    """Add the missing handlers of `posts` to a class; they return empty responses."""
    there = {method_handler(each) for each in vars(handlers).values()}
    for method in METHODS.values():
        if method.worker == "posts" and method.handler not in there:
            setattr(handlers, method.handler.replace(".", "_"), _idle(method))
    return handlers


def _idle(method: Method) -> Any:
    module, service, name = method.handler.rsplit(".", 2)
    declared = getattr(getattr(importlib.import_module(module), service), name)

    async def handler(_self: object, _request: Any, _context: Context) -> Any:
        return method.response()

    async def streaming_handler(_self: object, _request: Any, _context: Context) -> Any:
        yield method.response()

    marked: Any = MessagePattern
    return marked(declared)(streaming_handler if method.streams else handler)
