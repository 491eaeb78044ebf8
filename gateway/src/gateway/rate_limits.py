"""Rate limits: by address for requests without a token, by user for requests with one, and by
method if the contract has a `rate_limit` (proto/postbus/options/v1/options.proto).

Windows are fixed and aligned to the clock: one operation of the store decides about a request. The
table of all limits with their defaults is docs/limits.md.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from limits import parse
from limits.aio.storage import Storage

from gateway.client_addresses import network_of
from gateway.problems import HttpError
from gateway.rate_storage import BoundedStorage
from gateway.response_headers import Header
from postbus import reasons
from postbus.registry import METHODS, Access, Method
from shared.limited_log import LimitedLog

__all__ = ["RateLimitSettings", "RateLimits"]

_SHARED_SECONDS: Final = 0.3
"""Longest time to count a request in Redis, with the connection to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitSettings:
    """Rates such as `100/minute`; empty for no limit."""

    address: str = ""
    user: str = ""
    user_changes: str = ""
    methods: Mapping[str, str] = field(default_factory=dict)
    """Overrides the contract's `rate_limit`, by the full name of the method."""


class _Policy:
    """One limit. Its name is that in the header fields."""

    __slots__ = ("amount", "by_user", "name", "seconds", "text")

    def __init__(self, name: str, rate: str, *, by_user: bool) -> None:
        item = parse(rate)
        self.name = name
        self.amount = item.amount
        self.seconds = item.get_expiry()
        self.by_user = by_user
        self.text = b'"%b";q=%d;w=%d' % (name.encode(), self.amount, self.seconds)


class _Plan:
    """The policies that apply to a request, the most specific one first.

    A refused request is not counted by the policies after it: refused calls of one method do not
    use up the general rates.
    """

    __slots__ = ("header", "policies")

    def __init__(self, policies: list[_Policy]) -> None:
        self.policies = policies
        self.header = (b"ratelimit-policy", b", ".join([each.text for each in policies]))


class RateLimits:
    """Counts requests, and refuses them with 429. `clock` returns seconds since the epoch.

    While Redis is unavailable, each gateway counts alone.
    """

    def __init__(
        self, settings: RateLimitSettings, storage: Storage, clock: Callable[[], float] = time.time
    ) -> None:
        self._shared = None if isinstance(storage, BoundedStorage) else storage
        self._memory = storage if isinstance(storage, BoundedStorage) else BoundedStorage()
        self._clock = clock
        self._log = LimitedLog()
        self._of_address = _policies("address", settings.address, by_user=False)
        self._of_user = _policies("user", settings.user, by_user=True)
        self._of_changes = _policies("user-changes", settings.user_changes, by_user=True)
        self._other = _Plan(self._of_address)
        self._any_method = _Plan(self._of_user)
        self._anonymous = {
            each.name: self._plan(each, settings, False) for each in METHODS.values()
        }
        self._users = {each.name: self._plan(each, settings, True) for each in METHODS.values()}

    def _plan(self, method: Method, settings: RateLimitSettings, with_token: bool) -> _Plan:
        rate = settings.methods.get(method.name, method.rate_limit)
        by_user = with_token and method.access is Access.USER
        special = _policies(method.name.rpartition(".")[2], rate, by_user=by_user)
        if not with_token:
            return _Plan(special + self._of_address)
        return _Plan(
            special + (self._of_changes if method.has_side_effects else []) + self._of_user
        )

    async def admit(
        self, address: str, caller_id: str = "", method: Method | None = None
    ) -> list[Header]:
        """Count a request and return the `RateLimit` header fields of its response.

        `caller_id` is the user of a valid token, empty without a token; `method` is None for a path
        that is not in the contract, and for a message whose method is not known yet. Raises 429
        RATE_LIMITED with `Retry-After` and the same header fields
        (draft-ietf-httpapi-ratelimit-headers-10).
        """
        plan = self._other
        if method is not None:
            plan = (self._users if caller_id else self._anonymous)[method.name]
        elif caller_id:
            plan = self._any_method
        if not plan.policies:
            return []
        now, limits = int(self._clock()), ""
        for policy in plan.policies:
            subject = caller_id if policy.by_user else network_of(address)
            key = f"{policy.name}/{subject}/{now // policy.seconds}"
            if self._shared is None:
                count = self._memory.count(key)
            else:
                count = await self._count_shared(self._shared, key, policy.seconds)
            remaining, reset = policy.amount - count, policy.seconds - now % policy.seconds
            limits += (
                f'{limits and ", "}"{policy.name}";r={remaining if remaining > 0 else 0};t={reset}'
            )
            if remaining < 0:
                raise _limited(policy, reset, plan, limits)
        return [plan.header, (b"ratelimit", limits.encode())]

    async def _count_shared(self, shared: Storage, key: str, seconds: int) -> int:
        """Count in Redis, or in memory if it does not return a number in time."""
        try:
            async with asyncio.timeout(_SHARED_SECONDS):  # the driver's limit is that of one read
                return int(await shared.incr(key, seconds))
        except Exception as error:  # noqa: BLE001  # the driver raises anything if the server is not Redis
            self._log.write(
                logging.WARNING,
                "rate_limits.redis_unavailable",
                setting="POSTBUS_RATE_STORAGE_URL",
                error=type(getattr(error, "storage_error", error)).__name__,
            )
            return self._memory.count(key)


def _policies(name: str, rate: str, *, by_user: bool) -> list[_Policy]:
    return [_Policy(name, rate, by_user=by_user)] if rate else []


def _limited(policy: _Policy, reset: int, plan: _Plan, limits: str) -> HttpError:
    error = HttpError(
        reasons.RATE_LIMITED,
        f"At most {policy.amount} requests in {policy.seconds} seconds: wait {reset} seconds.",
        headers={"RateLimit-Policy": plan.header[1].decode(), "RateLimit": limits},
    )
    error.retry_after = reset
    return error
