"""A method with its handler, and the encoding of its responses."""

import hmac
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

import betterproto

from postbus import reasons
from postbus.registry import Access, Method
from shared.bus.handler_metrics import HandlerMetrics
from shared.context import Context
from shared.errors import ServiceError
from shared.outbox.inbox import Operation
from shared.outbox.unit_of_work import current_unit_of_work
from shared.wire import encode

__all__ = ["Handler", "ServedMethod", "encode_response", "run_in_unit", "run_stream"]

Handler = Callable[[Any, Context], Any]
"""A coroutine function; for a streaming method an async generator function."""

_MAX_REPLY_BYTES: Final = 8 * 2**20
"""Largest response; RabbitMQ 4 accepts messages of 16 MiB by default."""


class ServedMethod:
    """A method that this worker serves on the route `name`."""

    __slots__ = ("callers", "handler", "method", "metrics", "name", "needs_user")

    def __init__(
        self, name: str, method: Method, handler: Handler, metrics: HandlerMetrics
    ) -> None:
        self.name = name
        self.method = method
        self.handler = handler
        self.metrics = metrics
        self.needs_user = method.access is Access.USER
        self.callers = method.callers

    def operation(self, payload: bytes, context: Context) -> Operation:
        """Return the operation of a call with side effects; `payload` is the encoded request.

        The fingerprint is keyed, so that a request, such as a password, cannot be guessed from it.
        """
        fingerprint = hmac.digest(context.operation_id.encode(), payload, "sha256")
        # without a token the request is part of the key: anonymous callers may choose equal ids
        caller = context.caller.user_id if context.caller else f"nobody {fingerprint.hex()}"
        return Operation(
            key=Operation.key_of("call", self.method.name, caller, context.operation_id),
            fingerprint=fingerprint,
            secret=self.method.secret_response,
            owner=context.caller.user_id if context.caller else "",
        )


async def run_stream(
    handler: Handler, message: betterproto.Message, context: Context
) -> AsyncGenerator[Any, None]:
    """Yield the responses of a streaming handler until its end or the deadline."""
    responses = handler(message, context)
    async with aclosing(responses):
        while True:
            with context:
                try:
                    response = await anext(responses)
                except StopAsyncIteration:
                    return
            yield response


def encode_response(response: betterproto.Message) -> bytes:
    """Return a response encoded; OUT_OF_RANGE, REPLY_TOO_LARGE if it is too large for a Reply."""
    payload = encode(response)
    if len(payload) > _MAX_REPLY_BYTES:  # the broker would close the channel, with all its calls
        raise ServiceError(reasons.REPLY_TOO_LARGE, "The response is too large. Request less.")
    return payload


async def run_in_unit(handler: Handler, message: betterproto.Message, context: Context) -> bytes:
    """Execute a handler in the current unit of work; return the encoded response."""
    unit = current_unit_of_work()
    context.restart(late=unit is not None and unit.late)
    response = await handler(message, context)
    return b"" if response is None else encode_response(response)
