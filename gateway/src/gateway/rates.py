"""Rate limits: requests by address without a token, by user with one, and by method where the
contract says so (`rate_limit` in proto/postbus/options/v1/options.proto).

Windows are fixed and aligned to the clock: one operation of the store decides about a request. The
table of all limits with their defaults is docs/limits.md.
"""

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog
from limits import parse
from limits.aio.storage import RedisStorage, Storage
from limits.errors import StorageError
from pydantic import SecretStr
from redis.asyncio import BlockingConnectionPool

from gateway.addresses import network_of
from gateway.headers import Header
from gateway.problems import HttpError
from postbus.registry import METHODS, Access, Idempotency, Method
from shared.errors import Code

__all__ = ["BoundedStorage", "RateSettings", "Rates", "open_storage"]

_log = structlog.get_logger()
_MAX_KEYS: Final = 50_000
"""Windows counted in memory, of about 200 bytes each; the oldest is dropped first."""
_STORE_SECONDS: Final = 0.1
"""Longest wait for Redis; a request is then counted in memory."""
_STORE_CONNECTIONS: Final = 16
"""Connections of one gateway to Redis."""
_LOG_SECONDS: Final = 10.0
"""Time between two log lines about a store that is unavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSettings:
    """Rates as `100/minute`; empty for no limit."""

    address: str = ""
    user: str = ""
    user_changes: str = ""
    methods: Mapping[str, str] = field(default_factory=dict)
    """Overrides the contract's `rate_limit`, by the full name of the method."""


class _Policy:
    """One limit, with its name in the header fields."""

    __slots__ = ("amount", "by_user", "name", "seconds", "text")

    def __init__(self, name: str, rate: str, *, by_user: bool) -> None:
        item = parse(rate)
        self.name = name
        self.amount = item.amount
        self.seconds = item.get_expiry()
        self.by_user = by_user
        self.text = b'"%b";q=%d;w=%d' % (name.encode(), self.amount, self.seconds)


class _Plan:
    """The limits that a request counts towards, the most specific one first.

    So refused calls of one method do not use up the general rates.
    """

    __slots__ = ("header", "policies")

    def __init__(self, policies: list[_Policy]) -> None:
        self.policies = policies
        self.header = (b"ratelimit-policy", b", ".join([each.text for each in policies]))


class BoundedStorage(Storage):
    """Counts windows in memory, at most `max_keys`; a store of the library `limits`.

    The library's own memory store starts a thread every 10 ms and walks all keys in it.
    """

    STORAGE_SCHEME = None  # made by hand, not from a URL
    base_exceptions = ValueError

    def __init__(self, max_keys: int = _MAX_KEYS) -> None:
        super().__init__()
        self._max_keys = max_keys
        self._counts: OrderedDict[str, int] = OrderedDict()

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count `amount` more under `key`, which holds its window; return the sum."""
        return self.count(key, amount)

    def count(self, key: str, amount: int = 1) -> int:
        """Count as `incr` does, without a coroutine."""
        counted = self._counts.get(key, 0) + amount
        self._counts[key] = counted
        if len(self._counts) > self._max_keys:
            self._counts.popitem(last=False)
        return counted

    async def get(self, key: str) -> int:
        """Return the count under `key`."""
        return self._counts.get(key, 0)

    async def get_expiry(self, key: str) -> float:
        """Return now: windows end by their key."""
        return time.time()

    async def check(self) -> bool:
        """Return True: memory is always there."""
        return True

    async def reset(self) -> int | None:
        """Forget all windows; return how many there were."""
        number = len(self._counts)
        self._counts.clear()
        return number

    async def clear(self, key: str) -> None:
        """Forget the window under `key`."""
        self._counts.pop(key, None)


@asynccontextmanager
async def open_storage(url: SecretStr | None) -> AsyncIterator[Storage]:
    """Open the store of the counts: Redis at `redis://…`, shared by all gateways, or memory."""
    if url is None:
        yield BoundedStorage()
        return
    address = url.get_secret_value()
    pool = BlockingConnectionPool.from_url(
        address,
        max_connections=_STORE_CONNECTIONS,
        timeout=_STORE_SECONDS,
        socket_timeout=_STORE_SECONDS,
        socket_connect_timeout=_STORE_SECONDS,
    )
    try:
        yield RedisStorage(
            f"async+{address}",
            wrap_exceptions=True,
            implementation="redispy",
            connection_pool=pool,  # type: ignore[arg-type]  # an option of redis-py's client
        )
    finally:
        await pool.aclose()


class Rates:
    """Admits requests, or refuses them with 429. `clock` gives seconds since the epoch.

    While Redis is unavailable, each gateway counts for itself.
    """

    def __init__(
        self, settings: RateSettings, storage: Storage, clock: Callable[[], float] = time.time
    ) -> None:
        self._shared = None if isinstance(storage, BoundedStorage) else storage
        self._memory = storage if isinstance(storage, BoundedStorage) else BoundedStorage()
        self._clock = clock
        self._silent_until = 0.0
        self._of_address = _policies("address", settings.address, by_user=False)
        self._of_user = _policies("user", settings.user, by_user=True)
        self._of_changes = _policies("user-changes", settings.user_changes, by_user=True)
        self._other = _Plan(self._of_address)
        self._anonymous = {
            each.name: self._plan(each, settings, False) for each in METHODS.values()
        }
        self._users = {each.name: self._plan(each, settings, True) for each in METHODS.values()}

    def _plan(self, method: Method, settings: RateSettings, with_token: bool) -> _Plan:
        rate = settings.methods.get(method.name, method.rate_limit)
        by_user = with_token and method.access is Access.USER
        special = _policies(method.name.rpartition(".")[2], rate, by_user=by_user)
        if not with_token:
            return _Plan(special + self._of_address)
        changes = method.idempotency is not Idempotency.NO_SIDE_EFFECTS
        return _Plan(special + (self._of_changes if changes else []) + self._of_user)

    async def admit(
        self, address: str, caller_id: str = "", method: Method | None = None
    ) -> list[Header]:
        """Count a request and return the `RateLimit` header fields of its answer.

        `caller_id` is the user of a valid token, empty for none; `method` is None for a path that
        is not in the contract. Raises 429 RATE_LIMITED with `Retry-After` and the same header
        fields (draft-ietf-httpapi-ratelimit-headers-10).
        """
        plan = self._other
        if method is not None:
            plan = (self._users if caller_id else self._anonymous)[method.name]
        if not plan.policies:
            return []
        now = self._clock()
        parts = []
        for policy in plan.policies:
            window, passed = divmod(int(now), policy.seconds)
            key = f"{policy.name}/{caller_id if policy.by_user else network_of(address)}/{window}"
            if self._shared is None:
                count = self._memory.count(key)
            else:
                count = await self._count_shared(self._shared, key, policy.seconds)
            left, reset = policy.amount - count, policy.seconds - passed
            parts.append(f'"{policy.name}";r={max(left, 0)};t={reset}')
            if left < 0:
                raise _limited(policy, reset, plan, parts)
        return [plan.header, (b"ratelimit", ", ".join(parts).encode())]

    async def _count_shared(self, shared: Storage, key: str, seconds: int) -> int:
        try:
            return await shared.incr(key, seconds)
        except StorageError:
            now = time.monotonic()
            if now >= self._silent_until:
                self._silent_until = now + _LOG_SECONDS
                _log.warning("rates.store_unavailable")
            return self._memory.count(key)


def _policies(name: str, rate: str, *, by_user: bool) -> list[_Policy]:
    return [_Policy(name, rate, by_user=by_user)] if rate else []


def _limited(policy: _Policy, reset: int, plan: _Plan, parts: list[str]) -> HttpError:
    error = HttpError(
        429,
        Code.RESOURCE_EXHAUSTED,
        "RATE_LIMITED",
        f"At most {policy.amount} requests in {policy.seconds} seconds: wait {reset} seconds.",
        headers={"RateLimit-Policy": plan.header[1].decode(), "RateLimit": ", ".join(parts)},
    )
    error.retry_after = reset
    return error
