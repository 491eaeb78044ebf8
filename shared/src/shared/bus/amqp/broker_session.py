"""A broker session: the two connections of one process, until one of them is lost."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.event_publisher import EventPublisher
from shared.bus.amqp.publishers import Publishers
from shared.bus.amqp.rpc_client import RpcClient
from shared.bus.amqp.second_replies import SecondReplies
from shared.bus.amqp.topology import exchange, service_exchanges
from shared.security_log import SecurityLog

__all__ = ["BrokerSession"]

_DECLARE_TIMEOUT: Final = 5


class BrokerSession:
    """Two connections: one publishes and carries calls and replies, one consumes events.

    RabbitMQ stops reading from publishing connections when it is short of memory or disk; events
    on the other connection can then still be acknowledged. `lost` is set once a connection, a
    channel or a consumer is lost; the session is not used any more.
    """

    def __init__(
        self,
        publishing: BrokerConnection,
        consuming: BrokerConnection,
        service: str,
        security_log: SecurityLog | None = None,
        second_replies: SecondReplies | None = None,
    ) -> None:
        self.publishing = publishing
        self.consuming = consuming
        self.service = service
        self.security_log = security_log or SecurityLog()
        self.lost = asyncio.Event()
        self.suspicious = asyncio.Event()
        """Set once something that the session owns may be missing at the broker."""
        self.publishers = Publishers(publishing)
        self.rpc = RpcClient(
            publishing,
            self.publishers,
            service,
            suspicious=self.suspicious,
            security_log=self.security_log,
            second_replies=second_replies or SecondReplies(Counter()),
        )
        self.events = EventPublisher(publishing, service, self.suspicious)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str,
        service: str,
        security_log: SecurityLog | None = None,
        second_replies: SecondReplies | None = None,
    ) -> AsyncIterator["BrokerSession"]:
        """Connect and declare the exchanges of `service`; raises BROKER_ERRORS."""
        async with (
            BrokerConnection.open(url, service) as publishing,
            BrokerConnection.open(url, f"{service} (events)") as consuming,
        ):
            session = cls(publishing, consuming, service, security_log, second_replies)
            publishing.on_lost = consuming.on_lost = session.mark_lost
            async with asyncio.timeout(_DECLARE_TIMEOUT):
                await session.rpc.start(service_exchanges(service))
                await session.events.open()
            yield session

    @property
    def ready(self) -> bool:
        """Whether messages can be sent at this moment."""
        return not (self.lost.is_set() or self.publishing.transport.blocked)

    @property
    def close_reason(self) -> str:
        """Why the broker has closed a connection; empty if it has not."""
        return self.publishing.transport.close_reason or self.consuming.transport.close_reason

    async def wait_suspicious(self, seconds: float) -> None:
        """Wait until something may be missing, for some seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.suspicious.wait()

    async def restore(self) -> bool:
        """Declare the objects of the session, but the exchange of its events; raises BROKER_ERRORS.

        Returns whether something was missing.
        """
        events = exchange("events", self.service)
        exchanges = [each for each in service_exchanges(self.service) if each.name != events]
        return await self.publishing.restore(*exchanges, self.rpc.reply_queue)

    def mark_lost(self) -> None:
        """Set `lost`, on both connections too, and fail every pending call and stream."""
        if self.lost.is_set():
            return
        self.lost.set()
        self.publishing.mark_lost()
        self.consuming.mark_lost()
        self.rpc.mark_lost()
