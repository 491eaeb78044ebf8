"""A method as a worker serves it: what each call of it needs, and how its answer is sent."""

import hmac
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import betterproto

from postbus.registry import Access, Idempotency, Method
from shared.bus.handler_matching import Handler
from shared.bus.handler_metrics import HandlerMetrics
from shared.context import Context
from shared.errors import Code, ServiceError
from shared.outbox.inbox import Operation
from shared.wire import encode

__all__ = ["ServedMethod", "encode_response", "run_stream"]

_MAX_REPLY_BYTES: Final = 8 * 2**20


class ServedMethod:
    """A method and what it needs at each call."""

    __slots__ = ("changes", "counted", "handler", "method", "name", "needs_user")

    def __init__(
        self, name: str, method: Method, handler: Handler, counted: HandlerMetrics
    ) -> None:
        self.name = name
        self.method = method
        self.handler = handler
        self.counted = counted
        self.needs_user = method.access is Access.USER
        self.changes = method.idempotency is not Idempotency.NO_SIDE_EFFECTS

    def operation(self, request: Any, context: Context) -> Operation | None:
        """Return what a call does once; None if it changes nothing."""
        if not self.changes:
            return None
        asked = _fingerprint(context.operation_id, request.payload)
        # two people without a token may choose the same key: they then ask for different things
        caller = context.caller.user_id if context.caller else f"nobody {asked.hex()}"
        return Operation(
            key=Operation.key_of("call", self.method.name, caller, context.operation_id),
            fingerprint=asked,
            secret=self.method.secret_response,
        )


async def run_stream(
    handler: Handler, message: betterproto.Message, context: Context
) -> AsyncGenerator[Any, None]:
    """Yield what `handler` yields until it is done or the deadline passes."""
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
    """Return a response encoded; OUT_OF_RANGE if it is too large for a Reply."""
    payload = encode(response)
    if len(payload) > _MAX_REPLY_BYTES:  # the broker would close the channel, and with it all
        raise ServiceError(
            Code.OUT_OF_RANGE, "REPLY_TOO_LARGE", "The answer is too large: ask for less."
        )
    return payload


def _fingerprint(operation_id: str, payload: bytes) -> bytes:
    """Tell requests apart; what is in one, such as a password, is not to be guessed from it."""
    return hmac.digest(operation_id.encode(), payload, "sha256")
