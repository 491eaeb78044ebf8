"""RabbitMQ, PostgreSQL and MongoDB on a developer's machine."""

from tools.servers.addresses import Addresses
from tools.servers.errors import ServersUnavailableError
from tools.servers.lifecycle import servers

__all__ = ["Addresses", "ServersUnavailableError", "servers"]
