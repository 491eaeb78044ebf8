"""Password hashes (argon2id), computed in a bounded number of threads; log-ins have priority."""

import asyncio
import os
import time
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError

from postbus import reasons
from shared.errors import ServiceError

T = TypeVar("T")

__all__ = ["HashSlot", "Passwords", "Purpose", "Verdict", "normalized"]


class Purpose(Enum):
    """Purpose of a hash. Each purpose has its own queue."""

    LOG_IN = "log in"
    PASSWORD_CHANGE = "change a password"  # noqa: S105  # no password
    SIGN_UP = "sign up"


_PLACES: Final[Mapping[Purpose, int]] = {
    Purpose.LOG_IN: 32,
    Purpose.PASSWORD_CHANGE: 8,
    Purpose.SIGN_UP: 8,
}
"""Calls per purpose that may hash or wait at the same time: about a second of work. More would only
hold handlers and database connections."""
_FULL_SECONDS: Final = 0.06
"""Average time of a hash up to which a purpose has all its places. While hashes are slower, it has
fewer: the last waiting calls would do their work in vain, because their deadline ends first."""
_SAMPLES: Final = 8
"""Hashes after which the average time follows a change."""
_CONSECUTIVE_LOG_INS: Final = 3
"""Log-ins in a row, after which another purpose gets a thread, so that log-ins cannot starve it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of a verification."""

    matches: bool
    new_hash: str | None = None
    """A hash with the current parameters, if the stored one has other parameters."""


class Passwords:
    """Hashes and verifies passwords. The owner calls `close`.

    Passwords are compared after Unicode normalization (NFC, RFC 8265).
    """

    def __init__(self) -> None:
        # OWASP's Password Storage Cheat Sheet; half of the cores are left to other calls
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self._free_threads = max(1, (os.cpu_count() or 1) // 2)
        self._threads = ThreadPoolExecutor(self._free_threads, thread_name_prefix="argon2")
        self._dummy_hash = self._hasher.hash("unknown account")
        self._slots: Counter[Purpose] = Counter()
        self._waiting: dict[Purpose, deque[asyncio.Future[None]]] = {
            purpose: deque() for purpose in Purpose
        }
        self._consecutive_log_ins = 0
        self._seconds = 0.0  # average time of a hash

    @contextmanager
    def acquire_slot(self, purpose: Purpose) -> Iterator["HashSlot"]:
        """Acquire a slot in the queue of `purpose`, for all hashes of one call.

        RESOURCE_EXHAUSTED with PASSWORDS_BUSY if the queue is full. Acquire the slot before any
        other work of the call, so that a refused call costs nothing."""
        if self._slots[purpose] >= self._places(purpose):
            raise ServiceError(
                reasons.PASSWORDS_BUSY,
                f"Too many clients are trying to {purpose.value}.",
                retry_after=1,
            )
        self._slots[purpose] += 1
        try:
            yield HashSlot(self, purpose)
        finally:
            self._slots[purpose] -= 1

    def _places(self, purpose: Purpose) -> int:
        slower = max(1.0, self._seconds / _FULL_SECONDS)
        return max(1, int(_PLACES[purpose] / slower))

    async def hash(self, purpose: Purpose, password: str) -> str:
        """See HashSlot.hash."""
        return await self._run(purpose, self._hasher.hash, normalized(password))

    async def verify(self, purpose: Purpose, password_hash: str | None, password: str) -> Verdict:
        """See HashSlot.verify."""
        verified = password_hash or self._dummy_hash
        verdict = await self._run(purpose, self._matches, verified, normalized(password))
        return verdict if password_hash else Verdict(matches=False)

    def _matches(self, password_hash: str, password: str) -> Verdict:
        try:
            self._hasher.verify(password_hash, password)
        except VerificationError:
            return Verdict(matches=False)
        outdated = self._hasher.check_needs_rehash(password_hash)
        return Verdict(matches=True, new_hash=self._hasher.hash(password) if outdated else None)

    async def _run(self, purpose: Purpose, function: Callable[..., T], *args: str) -> T:
        """Run `function` in a thread as soon as one is free for the call.

        The thread is released when `function` returns, not when the call is cancelled, so that
        cancelled calls cannot start more work than there are threads.
        """
        await self._acquire_thread(purpose)
        loop = asyncio.get_running_loop()

        def release(_: ThreadFuture[T]) -> None:
            with suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(self._release_thread)

        work = self._threads.submit(self._measured, function, *args)
        work.add_done_callback(release)
        return await asyncio.wrap_future(work)

    def _measured(self, function: Callable[..., T], *args: str) -> T:
        began = time.perf_counter()
        result = function(*args)
        self._seconds += (time.perf_counter() - began - self._seconds) / _SAMPLES
        return result

    async def _acquire_thread(self, purpose: Purpose) -> None:
        if self._free_threads > 0:
            self._free_threads -= 1
            return
        assigned: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[purpose].append(assigned)
        try:
            await assigned
        except asyncio.CancelledError:
            if not assigned.cancelled():  # the thread was assigned in the same tick
                self._release_thread()
            raise

    def _release_thread(self) -> None:
        while queue := self._next_queue():
            assigned = queue.popleft()
            if not assigned.done():
                assigned.set_result(None)
                return
        self._free_threads += 1

    def _next_queue(self) -> deque[asyncio.Future[None]] | None:
        """Return the queue of the next call; None if no call is waiting."""
        log_ins = self._waiting[Purpose.LOG_IN]
        rest = self._waiting[Purpose.PASSWORD_CHANGE] or self._waiting[Purpose.SIGN_UP]
        if log_ins and not (rest and self._consecutive_log_ins >= _CONSECUTIVE_LOG_INS):
            self._consecutive_log_ins += 1
            return log_ins
        self._consecutive_log_ins = 0
        return rest or None

    def close(self) -> None:
        """Stop the threads and drop the waiting hashes."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class HashSlot:
    """A slot in the queue of a purpose, for the hashes of one call."""

    _passwords: Passwords
    _purpose: Purpose

    async def hash(self, password: str) -> str:
        """Return the hash of `password`, with its salt and parameters."""
        return await self._passwords.hash(self._purpose, password)

    async def verify(self, password_hash: str | None, password: str) -> Verdict:
        """Return whether `password` matches the hash.

        Without a hash it never matches, and a dummy hash is verified so that the time is the same.
        """
        return await self._passwords.verify(self._purpose, password_hash, password)


def normalized(password: str) -> str:
    """Return the normalized password, as it is compared and hashed."""
    return unicodedata.normalize("NFC", password)
