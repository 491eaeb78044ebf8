"""The bus over RabbitMQ, in five layers: a module imports only its own layer and lower layers.

A call takes this way: `rpc_client`, `call_sender`; at the server `call_receiver`, `call_execution`,
`reply_sender`; at the client `reply_receiver`. An event: `event_publisher`; `event_consumer`.

1. bus: `amqp_bus` with `reconnection`, and `consumer_starts` for each session; `topology_watch`
   restores what is missing
2. server and consumers, on `queue_consumer`
   - calls: `rpc_server` declares the queues of `method_queues`; `call_receiver` bounds
     `received_calls`, `call_execution` runs the handlers, `reply_sender` replies;
     `control_receiver` takes cancellations, `stream_credit`, and the messages of `control_answers`
   - events: `event_consumer` with `pause`, `failed_events`, `event_replay` and `queue_migration`;
     `stream_reader`; both with `event_senders` and `stream_channel`
3. broker session: `broker_session`
   - calls: `rpc_client` with `call_sender` (single calls and batches), `pending_calls`,
     `reply_receiver`, `reply_stream`, `control_sender`, `lost_calls` and `second_replies`
   - events: `event_publisher`
4. connection: `broker_connection`, `message_channel` with `confirms` and `acknowledgements`,
   `publishers` (a channel for each foreign exchange), `batches`, `transport` (the socket),
   `broker_errors`
5. codec: `frame_reader` and `message_frames`, `frame_writer`, `frame_format`,
   `message_properties`, `received_messages`; beside it `topology` (names and arguments) on
   `declarations`, and `broker_addresses`
"""

from shared.bus.amqp.amqp_bus import AmqpBus, connect

__all__ = ["AmqpBus", "connect"]
