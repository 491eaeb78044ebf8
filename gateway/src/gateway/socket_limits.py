"""Limits of WebSockets: frames, sockets and subscriptions."""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Final

from postbus import reasons
from postbus_runtime.reasons import Reason
from shared.errors import ServiceError

__all__ = ["FrameBudget", "FrameBudgets", "Quota", "SocketLimits", "SocketQuotas", "cost_of"]

_BYTES_PER_FRAME: Final = 4096
"""Bytes of payload that count as one additional frame."""
_RETRY_SECONDS: Final = 10.0
"""`Retry-After` of a refused socket or subscription."""
_MAX_BUDGETS: Final = 50_000
"""Most budgets of clients, of about 300 bytes each; the one without a new socket for the longest
time is dropped first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketLimits:
    """Limits of WebSockets; GatewaySettings describes each of them."""

    frames_per_second: int = 250
    frame_burst: int = 1000
    frames_per_client: int = 500
    sockets_per_address: int = 256
    sockets_per_user: int = 100
    subscriptions_per_socket: int = 64
    subscriptions_per_user: int = 500


def cost_of(size: int) -> int:
    """Return the cost of a frame with `size` bytes of payload, in frames."""
    return 1 + size // _BYTES_PER_FRAME


class FrameBudget:
    """Limits the rate of frames: the generic cell rate algorithm (ITU-T I.371).

    A frame costs 1, and 1 more for each 4 KiB of its payload. `rate` is the sustained cost per
    second, `burst` the largest cost at once. `shared` is the budget of all sockets of the client.
    """

    __slots__ = ("_burst_seconds", "_paid_until", "_seconds", "shared")

    def __init__(self, rate: float, burst: float, shared: "FrameBudget | None" = None) -> None:
        self.shared = shared
        """Counts each frame as well; may be replaced."""
        self._seconds = 1 / rate
        self._burst_seconds = burst / rate
        self._paid_until = 0.0

    def spend(self, size: int, now: float) -> bool:
        """Count a frame with `size` bytes of payload at `now`; False if it exceeds the rate."""
        cost = self._seconds * (1 + size // _BYTES_PER_FRAME)  # as `cost_of`, without a call
        paid_until = max(self._paid_until, now) + cost
        if paid_until - now > self._burst_seconds:
            return False
        self._paid_until = paid_until
        return self.shared is None or self.shared.spend(size, now)


class FrameBudgets:
    """The budgets of all sockets of a client: of an address until authentication, then of a user.

    A budget is kept after the last socket has ended: else a new socket would renew it.
    """

    def __init__(self, limits: SocketLimits, max_budgets: int = _MAX_BUDGETS) -> None:
        self._rate = limits.frames_per_client
        seconds = limits.frame_burst / limits.frames_per_second
        self._burst = max(limits.frame_burst, seconds * limits.frames_per_client)
        self._max_budgets = max_budgets
        self._budgets: OrderedDict[tuple[str, str], FrameBudget] = OrderedDict()

    def of_address(self, network: str) -> FrameBudget:
        """Return the budget of a network address."""
        return self._of(("address", network))

    def of_user(self, user_id: str) -> FrameBudget:
        """Return the budget of a user."""
        return self._of(("user", user_id))

    def _of(self, key: tuple[str, str]) -> FrameBudget:
        budget = self._budgets.pop(key, None) or FrameBudget(self._rate, self._burst)
        self._budgets[key] = budget
        if len(self._budgets) > self._max_budgets:
            self._budgets.popitem(last=False)
        return budget


class Quota:
    """Limits the number of sockets or subscriptions of each key."""

    def __init__(self, limit: int, reason: Reason, message: str) -> None:
        self._limit = limit
        self._reason = reason
        self._message = message
        self._counts: Counter[str] = Counter()

    def take(self, key: str) -> None:
        """Add one; raise ServiceError with `reason` if the key has `limit` already."""
        if self._counts[key] >= self._limit:
            raise ServiceError(self._reason, self._message, retry_after=_RETRY_SECONDS)
        self._counts[key] += 1

    def release(self, key: str) -> None:
        """Remove one."""
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]

    def __len__(self) -> int:
        """Return the number of keys that have at least one."""
        return len(self._counts)


class SocketQuotas:
    """The quotas that all sockets of one gateway share."""

    def __init__(self, limits: SocketLimits) -> None:
        reason = reasons.TOO_MANY_SOCKETS
        self.addresses = Quota(
            limits.sockets_per_address, reason, "This address has too many WebSockets."
        )
        """Sockets by network address."""
        self.users = Quota(limits.sockets_per_user, reason, "You have too many WebSockets.")
        """Authenticated sockets by user id."""
        self.subscriptions = Quota(
            limits.subscriptions_per_user,
            reasons.TOO_MANY_SUBSCRIPTIONS,
            "You have too many subscriptions on all your WebSockets.",
        )
        """Subscriptions by user id."""
