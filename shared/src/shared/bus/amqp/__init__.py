"""The bus over RabbitMQ."""

from shared.bus.amqp.amqp_bus import AmqpBus, connect

__all__ = ["AmqpBus", "connect"]
