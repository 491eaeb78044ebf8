"""The networks that may read metrics and the details of readiness."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

from starlette.types import Scope

from gateway.problems import HttpError
from gateway.request_headers import fields_of
from shared.errors import Code

__all__ = ["Network", "Operators"]

Network = IPv4Network | IPv6Network
_FORWARDING: Final = (b"forwarded", b"x-forwarded-for", b"via")
"""Fields that proxies add."""


class Operators:
    """Networks that may read metrics; all other clients can only read whether the system is ready.

    The address is that of the connection, or the client's behind a trusted proxy. A request that a
    proxy on this machine has forwarded without being trusted comes from the loopback address, but
    not from an operator.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks

    def include(self, scope: Scope) -> bool:
        """Return whether the request comes from an operator."""
        client = scope.get("client")
        if not client:
            return False
        try:
            address = ip_address(client[0])
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        if address.is_loopback and not fields_of(scope["headers"]).keys().isdisjoint(_FORWARDING):
            return False
        return any(address in network for network in self._networks)

    def require(self, scope: Scope) -> None:
        """Raise 403 unless the request comes from an operator."""
        if not self.include(scope):
            raise HttpError(
                403, Code.PERMISSION_DENIED, "OPERATORS_ONLY", "Your address may not read this."
            )
