"""Networks of operators: access to metrics and to the details of readiness."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

from starlette.types import Scope

from gateway.problems import HttpError
from gateway.request_headers import headers_of
from postbus import reasons

__all__ = ["Network", "OperatorNetworks"]

Network = IPv4Network | IPv6Network
_FORWARDING: Final = (b"forwarded", b"x-forwarded-for", b"via")
"""Headers that proxies add."""


class OperatorNetworks:
    """Networks of operators; all other clients can only read whether the system is ready.

    The address of a request is its peer address; behind a trusted proxy, the address in
    X-Forwarded-For. A request with a forwarding field from the loopback address was forwarded by an
    untrusted proxy on this machine: it does not count as an operator's.
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
        if address.is_loopback and not headers_of(scope["headers"]).keys().isdisjoint(_FORWARDING):
            return False
        return any(address in network for network in self._networks)

    def require(self, scope: Scope) -> None:
        """Raise 403 unless the request comes from an operator."""
        if not self.include(scope):
            raise HttpError(
                reasons.OPERATORS_ONLY,
                "Only the networks of operators may read this.",
            )
