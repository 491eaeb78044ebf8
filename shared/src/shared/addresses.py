"""Addresses of clients."""

from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import Final

__all__ = ["network_of"]

_IPV6_PREFIX: Final = 64
"""Bits of the network that one IPv6 client has for itself at least (RFC 6177)."""


def network_of(address: str) -> str:
    """Return the network that limits count for an address; empty if it is not an IP address.

    An IPv4 address counts alone, also in its IPv6 form; an IPv6 address counts by its /64 network.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((parsed, _IPV6_PREFIX), strict=False))
