"""The bus over RabbitMQ."""

from shared.messagebus.amqp.bus import AmqpBus, connect

__all__ = ["AmqpBus", "connect"]
