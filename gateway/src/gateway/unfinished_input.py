"""Bounds on the memory for incomplete heads, bodies and messages."""

from collections import Counter
from collections.abc import Callable
from typing import Final

from gateway.problems import HttpError
from postbus import reasons
from postbus_runtime.reasons import Reason
from shared.errors import Outcome

__all__ = ["FREE_BYTES", "UnfinishedInput"]

FREE_BYTES: Final = 16 * 1024
"""Unfinished bytes of one connection that do not count: small requests are never refused."""
_RETRY_SECONDS: Final = 5
"""`Retry-After` of refused input."""


class UnfinishedInput:
    """Counts the unfinished bytes of all connections, in total and by network address.

    `is_exempt` returns whether an address has no limit of its own: it is that of a proxy.
    """

    def __init__(
        self,
        *,
        total: int = 256 << 20,
        per_address: int = 16 << 20,
        is_exempt: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.total = 0
        """Bytes that are counted now."""
        self._max_total = total
        self._max_per_address = per_address
        self._is_exempt = is_exempt
        self._by_network: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return the number of addresses with unfinished bytes."""
        return len(self._by_network)

    def change(self, network: str, *, held: int, size: int) -> int:
        """Count `size` bytes of a connection in place of `held`; return the new value of `held`.

        Raises 429 or 503, without counting, if more bytes than before exceed a limit.
        """
        counted = size if size > FREE_BYTES else 0
        more = counted - held
        if more > 0:
            self._require_room(network, more)
        self.total += more
        self._by_network[network] += more
        if not self._by_network[network]:
            del self._by_network[network]
        return counted

    def _require_room(self, network: str, more: int) -> None:
        if self.total + more > self._max_total:
            raise _refusal(reasons.GATEWAY_FULL, "in total")
        of_network = self._by_network[network] + more
        if of_network > self._max_per_address and not self._is_exempt(network):
            raise _refusal(reasons.TOO_MUCH_UNFINISHED_INPUT, "of this address")


def _refusal(reason: Reason, scope: str) -> HttpError:
    error = HttpError(
        reason,
        f"Too many bytes {scope} belong to requests or messages that are incomplete.",
        outcome=Outcome.UNKNOWN,
    )
    error.retry_after = _RETRY_SECONDS
    return error
