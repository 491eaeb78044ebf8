"""Limits of one connection, and on the number of connections."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from gateway.problems import HttpError
from gateway.unfinished_input import UnfinishedInput
from postbus import reasons
from postbus_runtime.reasons import Reason

__all__ = ["ConnectionCounts", "HttpLimits"]

_RETRY_SECONDS: Final = 5
"""`Retry-After` of a refused connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Limits of one connection, in bytes and seconds."""

    max_body_bytes: int = 2 << 20
    """Bytes of the content, without chunk framing."""
    head_seconds: float = 10.0
    """Time from the first byte of a head, or the start of the connection, to the end of the
    head."""
    request_seconds: float = 30.0
    """Time from the first byte of a request to its last."""
    write_seconds: float = 30.0
    """Time without a byte acknowledged by the client."""
    idle_seconds: float = 75.0
    """Time between two requests."""
    linger_seconds: float = 10.0
    """Time for the client to read the last response and to close."""


class ConnectionCounts:
    """Counts the open connections of a server, and their unfinished input."""

    def __init__(
        self,
        *,
        total: int,
        per_address: int,
        unfinished_total: int = 256 << 20,
        unfinished_per_address: int = 16 << 20,
        proxies: Sequence[str] = (),
    ) -> None:
        """Take the limits; `proxies` are addresses or networks without a limit per address."""
        self.unfinished = UnfinishedInput(
            total=unfinished_total, per_address=unfinished_per_address, is_exempt=self._is_proxy
        )
        self.open = 0
        self.refused = 0
        """Refused connections that are open until the client has read the response."""
        self._total = total
        self._per_address = per_address
        self._proxies: list[IPv4Network | IPv6Network] = [ip_network(each) for each in proxies]
        self._by_network: Counter[str] = Counter()

    def admit(self, network: str) -> HttpError | None:
        """Count a connection, or return the error that refuses it: 503 or 429.

        Call `release` once for each admitted connection.
        """
        if self.open >= self._total:
            return _refusal(reasons.GATEWAY_FULL, "in total")
        if self._by_network[network] >= self._per_address and not self._is_proxy(network):
            return _refusal(reasons.TOO_MANY_CONNECTIONS, "from this address")
        self.open += 1
        self._by_network[network] += 1
        return None

    def release(self, network: str) -> None:
        """Stop counting an admitted connection."""
        self.open -= 1
        self._by_network[network] -= 1
        if not self._by_network[network]:
            del self._by_network[network]

    def _is_proxy(self, network: str) -> bool:
        if not network:  # a Unix socket
            return True
        address = ip_network(network)
        return any(
            address.version == proxy.version and address.overlaps(proxy) for proxy in self._proxies
        )


def _refusal(reason: Reason, scope: str) -> HttpError:
    error = HttpError(reason, f"There are too many connections {scope}.")
    error.retry_after = _RETRY_SECONDS
    return error
