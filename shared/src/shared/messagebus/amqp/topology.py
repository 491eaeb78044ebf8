"""What Postbus has at the broker: exchanges, queues and their arguments."""

from typing import Final

from aio_pika.abc import AbstractChannel

__all__ = [
    "CONTROL_EXCHANGE",
    "EVENT_EXCHANGE",
    "RPC_EXCHANGE",
    "declare_exchanges",
]

RPC_EXCHANGE: Final = "postbus.rpc"
CONTROL_EXCHANGE: Final = "postbus.control"
EVENT_EXCHANGE: Final = "postbus.events"


async def declare_exchanges(channel: AbstractChannel) -> None:
    """Declare what everyone needs."""
    for name in (RPC_EXCHANGE, CONTROL_EXCHANGE, EVENT_EXCHANGE):
        await channel.declare_exchange(name, "topic", durable=True)
