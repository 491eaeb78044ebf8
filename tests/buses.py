"""Open buses over RabbitMQ, and build the calls and handlers of their tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic import SecretStr

from postbus.bus.v1 import Reply, Request
from shared.bus import Call
from shared.bus.amqp import AmqpBus, connect
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.message_bus import Failure
from shared.wire import decode, encode

__all__ = ["a_call", "echo", "ignore", "opened_bus", "until_reconnected"]


@asynccontextmanager
async def opened_bus(url: str, service: str = "test", **options: Any) -> AsyncIterator[AmqpBus]:
    """Open a bus and wait for its connection; `options` are the keyword arguments of `connect`."""
    async with connect(SecretStr(url), service, **options) as bus:
        await bus.wait_ready()
        yield bus


def a_call(payload: bytes = b"", seconds: float = 5) -> Call:
    """Return a call with a budget."""
    return Call.new(payload, budget=seconds)


async def echo(_route: str, body: bytes, _service: str = "") -> bytes:
    """Reply with the payload of the call."""
    return encode(Reply(payload=decode(Request, body).payload))


async def ignore(_body: bytes) -> Failure | None:
    """Handle an event successfully."""
    return None


async def until_reconnected(bus: AmqpBus, session: BrokerSession | None) -> None:
    """Wait until the bus has another broker session."""
    async with asyncio.timeout(10):
        while bus._session in (None, session):  # noqa: ASYNC110  # polls
            await asyncio.sleep(0.01)
