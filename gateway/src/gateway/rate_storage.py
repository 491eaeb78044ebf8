"""The counts of the rate limits: in memory, or in a Redis that all gateways share."""

import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Final

from limits.aio.storage import RedisStorage, Storage
from pydantic import AfterValidator, SecretStr
from redis.asyncio import BlockingConnectionPool

from shared.server_addresses import split_address

__all__ = ["BoundedStorage", "RedisUrl", "open_storage"]

_MAX_KEYS: Final = 50_000
"""Windows counted in memory, of about 200 bytes each; the oldest is dropped first."""
_STORE_SECONDS: Final = 0.1
"""Longest wait for Redis; the request is then counted in memory."""
_STORE_CONNECTIONS: Final = 16
"""Connections of one gateway to Redis."""
_MALFORMED: Final = (
    "the address of Redis must have the form redis://user:password@host:port/number, with known"
    " parameters, and with the characters : / ? # @ and % of its parts percent-encoded"
)


def _checked(url: SecretStr) -> SecretStr:
    """Return an address without the spaces around it; ValueError if it is malformed."""
    address = url.get_secret_value().strip()
    with suppress(ValueError, TypeError):  # their texts may contain the password
        split_address(address)
        _pool(address).make_connection()  # type: ignore[no-untyped-call]  # TypeError for an unknown parameter
        return SecretStr(address)
    raise ValueError(_MALFORMED)


RedisUrl = Annotated[SecretStr, AfterValidator(_checked)]
"""The address of a Redis. A malformed one is refused, with an error that does not quote it."""


class BoundedStorage(Storage):
    """Counts windows in memory, `max_keys` at most; a store of the library `limits`.

    The library's own memory store starts a thread every 10 ms, which iterates over all keys.
    """

    STORAGE_SCHEME = None  # created directly, not from a URL
    base_exceptions = ValueError

    def __init__(self, max_keys: int = _MAX_KEYS) -> None:
        super().__init__()
        self._max_keys = max_keys
        self._counts: OrderedDict[str, int] = OrderedDict()

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Add `amount` to the count of `key`, which includes its window; return the sum."""
        return self.count(key, amount)

    def count(self, key: str, amount: int = 1) -> int:
        """Count as `incr` does, without a coroutine."""
        counts = self._counts
        if key in counts:
            counts[key] += amount
        else:
            counts[key] = amount
            if len(counts) > self._max_keys:
                counts.popitem(last=False)
        return counts[key]

    async def get(self, key: str) -> int:
        """Return the count of `key`."""
        return self._counts.get(key, 0)

    async def get_expiry(self, key: str) -> float:
        """Return the present time: the key of a window includes its end."""
        return time.time()

    async def check(self) -> bool:
        """Return True: memory is always available."""
        return True

    async def reset(self) -> int | None:
        """Remove all windows; return their number."""
        number = len(self._counts)
        self._counts.clear()
        return number

    async def clear(self, key: str) -> None:
        """Remove the window of `key`."""
        self._counts.pop(key, None)


@asynccontextmanager
async def open_storage(url: SecretStr | None) -> AsyncIterator[Storage]:
    """Open the store of the counts: Redis at `redis://…`, or memory if `url` is None."""
    if url is None:
        yield BoundedStorage()
        return
    address = url.get_secret_value()
    pool = _pool(address)
    try:
        yield RedisStorage(
            f"async+{address}",
            wrap_exceptions=True,
            implementation="redispy",
            connection_pool=pool,  # type: ignore[arg-type]  # an option of redis-py's client
        )
    finally:
        await pool.aclose()


def _pool(address: str) -> BlockingConnectionPool:
    return BlockingConnectionPool.from_url(
        address,
        max_connections=_STORE_CONNECTIONS,
        timeout=_STORE_SECONDS,
        socket_timeout=_STORE_SECONDS,
        socket_connect_timeout=_STORE_SECONDS,
    )
