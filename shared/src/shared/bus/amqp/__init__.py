"""The bus over RabbitMQ, in five layers: a module imports only its own layer and lower layers.

1. bus: `amqp_bus` reconnects and starts everything again; `topology_watch` restores what is missing
2. server and consumers, on `queue_consumer`
   - calls: `rpc_server` with its `method_queues`, `control_receiver` (cancellations, credit and
     broadcasts), `received_batch`, `reply_sender` and `stream_credit`
   - events: `event_consumer` with `pause`, `failed_events`, `event_replay` and `queue_migration`;
     `stream_reader`
3. broker session: `broker_session`
   - calls: `rpc_client` with `call_sender` (single calls and batches), `reply_stream`,
     `control_sender`, `lost_calls`, `correlation_ids` and `call_errors`
   - events: `event_publisher`
4. connection: `broker_connection`, `message_channel` with `confirms` and `acknowledgements`,
   `publishers` (a channel for each foreign exchange), `batches`, `transport` (the socket),
   `broker_errors`
5. codec: `frame_reader`, `frame_writer`, `frame_format`, `message_properties`, `received_messages`;
   beside it `topology` (names and arguments) on `declarations`, and `broker_addresses`
"""

from shared.bus.amqp.amqp_bus import AmqpBus, connect

__all__ = ["AmqpBus", "connect"]
