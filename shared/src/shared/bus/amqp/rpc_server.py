"""The server of a worker: declares its queues, and takes calls in each broker session."""

import logging
import secrets
from collections.abc import Sequence
from typing import Final

from shared.bus.amqp.broker_connection import BrokerConnection
from shared.bus.amqp.broker_errors import BROKER_ERRORS, MissingError
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.call_execution import CallExecution
from shared.bus.amqp.call_receiver import CallReceiver
from shared.bus.amqp.control_answers import BroadcastAnswers, ProbeAnswers
from shared.bus.amqp.control_receiver import ControlReceiver, control_queue
from shared.bus.amqp.declarations import Binding, Queue, TopologyError
from shared.bus.amqp.method_queues import MethodQueues
from shared.bus.amqp.queue_consumer import ConcurrentConsumer
from shared.bus.amqp.received_calls import MAX_CALLS, HeldCalls
from shared.bus.amqp.received_messages import Delivered
from shared.bus.amqp.reply_sender import ReplyChannels, ReplySender
from shared.bus.concurrency_limit import ConcurrencyLimit
from shared.bus.message_bus import RpcHandler
from shared.limited_log import LimitedLog

__all__ = ["RpcServer"]

_RPC_PREFETCH: Final = 2 * MAX_CALLS
"""More than the server ever holds, so that handlers that call their own worker cannot deadlock."""


class RpcServer(ConcurrentConsumer):
    """Serves calls. Each route has a queue of its own, named after `queue` and the route.

    The broker deletes a queue with its last consumer, so that calls of a route that no process
    serves are unroutable and fail immediately, also while processes of an older contract, without
    this route, serve other ones.
    """

    def __init__(
        self, queue: str, routes: Sequence[str], handler: RpcHandler, concurrency: int
    ) -> None:
        super().__init__(queue)
        self._routes = routes
        self._handler = handler
        self._limit = ConcurrencyLimit(concurrency)
        self._held = HeldCalls(self._running)
        self._stopping = False
        self._transient = True
        """Whether to declare transient queues: those of an older version are durable."""
        self._log = LimitedLog()

    async def start(self, session: BrokerSession) -> None:
        """Serve in this session; raises BROKER_ERRORS.

        Calls and replies share a connection, so that an acknowledgement follows its reply.
        """
        connection, service = session.publishing, session.service
        self._control_channel = await self._open_channel(connection)
        self._channel = await self._open_channel(connection, prefetch=_RPC_PREFETCH)
        self._queues = MethodQueues(
            service, self.queue_name, self._routes, transient=self._transient
        )
        self._execution = await self._take_controls(session)
        receiver = CallReceiver(self._channel, self._routes, self._execution, session.security_log)
        try:
            await self._queues.consume(self._channel, receiver.receive)
        except BROKER_ERRORS as error:
            if isinstance(error, MissingError):
                await self._queues.delete_unused(connection)
            elif isinstance(error, TopologyError):  # of another version: the next start joins them
                self._transient = not self._transient
            for channel in (self._control_channel, self._channel):
                connection.close_later(channel)
            raise
        self._connection = connection

    async def _take_controls(self, session: BrokerSession) -> CallExecution:
        """Take control messages, and return the execution of the calls that they concern."""
        service, log, held = session.service, session.security_log, self._held
        name = f"{service}.control.{secrets.token_hex(16)}"
        sender = ReplySender(name, service)
        replies = ReplyChannels(session.publishers, service, self._log, security_log=log)
        broadcasts = BroadcastAnswers(self._handler, held, replies, sender.header)
        probes = ProbeAnswers(self._queues.created, held, replies, sender.header)
        controls = ControlReceiver(
            replies, held.cancel, broadcasts.answer, probes.answer, security_log=log
        )
        own = self._control_queue = control_queue(name, service, self._routes)
        await self._control_channel.consume([name], controls.receive, declared=[own], no_ack=True)
        return CallExecution(
            handler=self._handler,
            limit=self._limit,
            held=held,
            queues=self._queues,
            replies=replies,
            sender=sender,
            controls=controls,
            log=self._log,
        )

    def connection(self, session: BrokerSession) -> BrokerConnection | None:
        """See Watched.connection."""
        return session.publishing if self.active and not self._stopping else None

    async def restore(self, connection: BrokerConnection) -> bool:
        """See Watched.restore. If a queue of calls is missing, the session ends and starts again.

        As a node of a cluster goes down, RabbitMQ can delete a transient queue that has just been
        declared at another node, without a message to its consumer (its issue 6271). The consumer
        would not be that of a new queue, and the end of the old queue would delete the new one.
        """
        try:
            await self._queues.check(connection)
        except MissingError:
            if not self._stopping:
                self._log.write(logging.WARNING, "queue.calls_missing", queue=self.queue_name)
                connection.mark_lost()
            return False
        return await connection.restore(*self.own())

    def own(self) -> Sequence[Queue | Binding]:
        """See QueueConsumer.own. Leaves the queues of calls out; see `restore`."""
        return [
            self._control_queue,
            *self._queues.retry_bindings(),
            *self._queues.bindings(self._routes),
        ]

    async def _stop_consuming(self, connection: BrokerConnection) -> None:
        self._stopping = True
        await self._queues.drain(self._channel, lambda: self._limit.waiting)
        await self._channel.stop_consuming(self._queues.names.values())
        # Without its queue, no other server gets the calls of a route that were not started.
        for route in {each.routing_key for each in self._running if isinstance(each, Delivered)}:
            if await connection.consumer_count(self._queues.names[route]) is None:
                self._execution.deleted.add(route)

    def _cancel_waiting(self) -> None:
        self._limit.cancel_waiters()

    async def _close(self, connection: BrokerConnection) -> None:
        await super()._close(connection)
        await connection.close_channel(self._control_channel)
