"""The bus over RabbitMQ, in five layers; each module uses only the layers below its own.

- bus: `amqp_bus`, with `topology_watch`
- server and consumers: `rpc_server`, `event_consumer` with `event_replay`, `stream_reader`
- broker session: `broker_session`; beside it `queue_consumer` and `queue_migration`
- connection: `broker_connection`, with `publishers`, and `batches` on `transport`
- codec: `frames`; beside it `topology` and `broker_addresses`
"""

from shared.bus.amqp.amqp_bus import AmqpBus, connect

__all__ = ["AmqpBus", "connect"]
