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
from gateway.problems import HttpError
from postbus.registry import METHODS, Access, Idempotency, Method
from shared.errors import Code

__all__ = ["BoundedStorage", "RateSettings", "Rates", "open_storage"]

_log = structlog.get_logger()
_MAX_KEYS: Final = 50_000
"""Windows counted in memory, of about 200 bytes each; the oldest is dropped first."""
_STORE_SECONDS: Final = 0.1
"""How long a request waits for Redis before it is counted in memory."""
_STORE_CONNECTIONS: Final = 16
_LOG_SECONDS: Final = 10.0
"""Time between two log lines about a store that is unavailable."""

Headers = list[tuple[bytes, bytes]]


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

    __slots__ = ("amount", "name", "seconds", "text")

    def __init__(self, name: str, rate: str) -> None:
        item = parse(rate)
        self.name = name
        self.amount = item.amount
        self.seconds = item.get_expiry()
        self.text = f'"{name}";q={self.amount};w={self.seconds}'


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
        self._storage = storage
        self._fallback = BoundedStorage()
        self._clock = clock
        self._silent_until = 0.0
        self._address = _policies(("address", settings.address))
        user = ("user", settings.user)
        self._user = _policies(user)
        self._user_changes = _policies(("user-changes", settings.user_changes), user)
        self._methods = {
            name: _policies((method.name.rpartition(".")[2], rate))
            for name, method in METHODS.items()
            if (rate := settings.methods.get(name, method.rate_limit))
        }

    async def admit(
        self, address: str, caller_id: str = "", method: Method | None = None
    ) -> Headers:
        """Count a request and return the `RateLimit` header fields of its answer.

        `caller_id` is the user of a valid token, empty for none; `method` is None for what is not
        in the contract. Raises 429 RATE_LIMITED with `Retry-After` and the same header fields.
        (draft-ietf-httpapi-ratelimit-headers-10)
        """
        now = self._clock()
        counted: list[tuple[_Policy, int]] = []
        for policy, key in self._due(address, caller_id, method):
            window = int(now // policy.seconds)
            count = await self._count(f"{policy.name}/{key}/{window}", policy.seconds)
            counted.append((policy, policy.amount - count))
            if count > policy.amount:
                raise _limited(policy, _reset(policy, now), _headers(counted, now))
        return _headers(counted, now)

    def _due(
        self, address: str, caller_id: str, method: Method | None
    ) -> list[tuple[_Policy, str]]:
        """Return the limits that a request counts towards, with their keys.

        The most special one comes first: a flood of one method does not use up the rest.
        """
        due: list[tuple[_Policy, str]] = []
        if method is not None and (special := self._methods.get(method.name)):
            by_user = method.access is Access.USER and caller_id
            due += [(policy, by_user or network_of(address)) for policy in special]
        if not caller_id:
            return due + [(policy, network_of(address)) for policy in self._address]
        changes = method and method.idempotency is not Idempotency.NO_SIDE_EFFECTS
        own = self._user_changes if changes else self._user
        return due + [(policy, caller_id) for policy in own]

    async def _count(self, key: str, seconds: int) -> int:
        try:
            return await self._storage.incr(key, seconds)
        except StorageError:
            now = time.monotonic()
            if now >= self._silent_until:
                self._silent_until = now + _LOG_SECONDS
                _log.warning("rates.store_unavailable")
            return await self._fallback.incr(key, seconds)


def _policies(*named: tuple[str, str]) -> tuple[_Policy, ...]:
    return tuple(_Policy(name, rate) for name, rate in named if rate)


def _reset(policy: _Policy, now: float) -> int:
    """Return the seconds until the window ends, rounded up."""
    return policy.seconds - int(now % policy.seconds)


def _headers(counted: list[tuple[_Policy, int]], now: float) -> Headers:
    if not counted:
        return []
    policies = ", ".join([policy.text for policy, _ in counted])
    left = ", ".join(
        [f'"{each.name}";r={max(rest, 0)};t={_reset(each, now)}' for each, rest in counted]
    )
    return [(b"ratelimit-policy", policies.encode()), (b"ratelimit", left.encode())]


def _limited(policy: _Policy, reset: int, headers: Headers) -> HttpError:
    error = HttpError(
        429,
        Code.RESOURCE_EXHAUSTED,
        "RATE_LIMITED",
        f"At most {policy.amount} requests in {policy.seconds} seconds: wait {reset} seconds.",
        headers={name.decode(): value.decode() for name, value in headers},
    )
    error.retry_after = reset
    return error
