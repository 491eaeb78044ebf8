"""Addresses of clients."""

from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import Final

__all__ = ["network_of"]

_IPV6_PREFIX: Final = 64
"""Bits of the smallest network that one IPv6 client is assigned (RFC 6177)."""


def network_of(address: str) -> str:
    """Return the network by which an address is rate limited; empty if it is not an IP address.

    This is the address itself for IPv4, also if mapped to IPv6, and the /64 network for IPv6.
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
