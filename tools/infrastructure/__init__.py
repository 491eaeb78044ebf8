"""RabbitMQ, PostgreSQL and MongoDB on a developer's machine."""

from tools.infrastructure.addresses import Addresses
from tools.infrastructure.errors import InfrastructureError
from tools.infrastructure.lifecycle import servers

__all__ = ["Addresses", "InfrastructureError", "servers"]
