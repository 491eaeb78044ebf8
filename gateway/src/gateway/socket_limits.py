"""Limits of WebSockets: frames, sockets and subscriptions."""

from collections import Counter
from dataclasses import dataclass
from typing import Final

from shared.errors import Code, ServiceError

__all__ = ["FrameBudget", "Quota", "SocketLimits", "SocketQuotas", "cost_of"]

_BYTES_PER_FRAME: Final = 4096
"""Bytes of payload that count as one additional frame."""
_RETRY_SECONDS: Final = 10.0
"""`Retry-After` of a refused socket or subscription."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketLimits:
    """Limits of WebSockets; GatewaySettings describes each of them."""

    frames_per_second: int = 250
    frame_burst: int = 1000
    sockets_per_address: int = 256
    sockets_per_user: int = 100
    subscriptions_per_socket: int = 64
    subscriptions_per_user: int = 500


def cost_of(size: int) -> int:
    """Return the cost of a frame with `size` bytes of payload, in frames."""
    return 1 + size // _BYTES_PER_FRAME


class FrameBudget:
    """Limits the rate of one socket's frames: the generic cell rate algorithm (ITU-T I.371).

    A frame costs 1, and 1 more for each 4 KiB of its payload. `rate` is the sustained cost per
    second, `burst` the largest cost at once.
    """

    __slots__ = ("_burst_seconds", "_paid_until", "_seconds")

    def __init__(self, rate: float, burst: float) -> None:
        self._seconds = 1 / rate
        self._burst_seconds = burst / rate
        self._paid_until = 0.0

    def spend(self, size: int, now: float) -> bool:
        """Count a frame with `size` bytes of payload at `now`; False if it exceeds the rate."""
        cost = self._seconds * cost_of(size)
        paid_until = max(self._paid_until, now) + cost
        if paid_until - now > self._burst_seconds:
            return False
        self._paid_until = paid_until
        return True


class Quota:
    """Limits the number of sockets or subscriptions of each key."""

    def __init__(self, limit: int, reason: str, message: str) -> None:
        self._limit = limit
        self._reason = reason
        self._message = message
        self._counts: Counter[str] = Counter()

    def take(self, key: str) -> None:
        """Add one; RESOURCE_EXHAUSTED with `reason` if the key has `limit` already."""
        if self._counts[key] >= self._limit:
            raise ServiceError(
                Code.RESOURCE_EXHAUSTED, self._reason, self._message, retry_after=_RETRY_SECONDS
            )
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
        reason = "TOO_MANY_SOCKETS"
        self.addresses = Quota(
            limits.sockets_per_address, reason, "This address has too many WebSockets."
        )
        """Sockets by network address."""
        self.users = Quota(limits.sockets_per_user, reason, "You have too many WebSockets.")
        """Authenticated sockets by user id."""
        self.subscriptions = Quota(
            limits.subscriptions_per_user,
            "TOO_MANY_SUBSCRIPTIONS",
            "You have too many subscriptions on all your WebSockets.",
        )
        """Subscriptions by user id."""
