"""Addresses of servers. They contain passwords, so no error quotes a part of one."""

from urllib.parse import SplitResult, urlsplit

__all__ = ["split_address"]


def split_address(address: str) -> SplitResult:
    """Return the parts of a URL.

    ValueError if a port is invalid, or if the account contains one of the characters / ? # @, which
    must be percent-encoded: a driver would take a part of the password for a host.
    """
    parts = urlsplit(address)
    account, at, hosts = parts.netloc.rpartition("@")
    unencoded = parts.fragment or "@" in account or (not at and "@" in parts.path + parts.query)
    if unencoded or not all(map(_has_valid_port, hosts.split(","))):
        raise ValueError("invalid address")
    return parts


def _has_valid_port(host: str) -> bool:
    """Return whether a host, of which IPv6 addresses have brackets, has a valid port or none."""
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]"):
        return True
    return ":" not in name.rpartition("]")[2] and port.isdecimal() and 0 < int(port) < 2**16
