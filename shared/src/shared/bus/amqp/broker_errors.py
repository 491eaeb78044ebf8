"""Errors of the broker and of aiormq."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from shared.bus.amqp.declarations import TopologyError

__all__ = [
    "BROKER_ERRORS",
    "MissingError",
    "RefusedError",
    "UnroutedError",
    "broker_errors",
    "declaration_errors",
]

BROKER_ERRORS: Final = (AMQPError, OSError, RuntimeError, TimeoutError)
"""Errors of aio-pika while the broker is unavailable (RuntimeError: the channel is closed)."""


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn cancellations by aiormq into ConnectionError, one of BROKER_ERRORS.

    After missed heartbeats (7.2.4) aiormq cancels its pending futures. The task that awaits them
    was not cancelled itself, and must not end.
    """
    task = asyncio.current_task()
    cancelling = task.cancelling() if task else 0
    try:
        yield
    except asyncio.CancelledError:
        if task is None or task.cancelling() > cancelling:
            raise
        raise ConnectionError("the broker is unavailable") from None


class MissingError(RuntimeError):
    """An exchange or a queue does not exist, or this account has no right to use it."""


class RefusedError(Exception):
    """The broker refused a message that was published with a confirm (basic.nack)."""


class UnroutedError(Exception):
    """No queue has taken a message that was published with a confirm (basic.return)."""


@contextmanager
def declaration_errors() -> Iterator[None]:
    """Turn refusals of declarations into TopologyError and MissingError."""
    try:
        yield
    except ChannelPreconditionFailed as error:
        raise TopologyError.of_refusal(str(error)) from None
    except (ChannelNotFoundEntity, ChannelAccessRefused) as error:
        raise MissingError(str(error)) from None
