"""Addresses of clients."""

from functools import lru_cache
from ipaddress import IPv6Address, ip_address

__all__ = ["network_of"]

_IPV6_SITE_BITS = 64
"""One IPv6 client has at least a /64 for itself (RFC 6177)."""


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """Return the name under which a client's address is counted: IPv6 by its /64 network.

    IPv4 addresses in IPv6 form count as IPv4. Text that is no address is returned as it is.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        network = int(parsed) >> (128 - _IPV6_SITE_BITS) << (128 - _IPV6_SITE_BITS)
        return f"{IPv6Address(network)}/{_IPV6_SITE_BITS}"
    return address
