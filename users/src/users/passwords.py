"""Password hashes: argon2id, off the event loop, a bounded number at once, log-ins first."""

import asyncio
import os
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

from shared.errors import Code, ServiceError

T = TypeVar("T")

__all__ = ["Passwords", "Place", "Purpose", "Verdict", "normal"]


class Purpose(Enum):
    """Purpose of a hash. Each purpose has a queue of its own."""

    LOG_IN = "log in"
    PASSWORD_CHANGE = "change a password"  # noqa: S105  # no password
    SIGN_UP = "sign up"


_PLACES: Final[Mapping[Purpose, int]] = {
    Purpose.LOG_IN: 32,
    Purpose.PASSWORD_CHANGE: 8,
    Purpose.SIGN_UP: 8,
}
"""Calls that compute or wait at once: about a second of work. More would only keep handlers and
database connections from other calls."""
_LOG_INS_IN_A_ROW: Final = 3
"""Then one of the other purposes gets a turn, so that a flood of log-ins doesn't stop them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a password fits, and its hash with today's parameters if the stored one has older."""

    fits: bool
    renewed: str | None = None


class Passwords:
    """Hashes and verifies passwords; `close` when done.

    Passwords with the same normalization form C are the same (RFC 8265).
    """

    def __init__(self) -> None:
        # by OWASP's Password Storage Cheat Sheet; half of the cores, to leave time for other calls
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self._free = max(1, (os.cpu_count() or 1) // 2)
        self._threads = ThreadPoolExecutor(self._free, thread_name_prefix="argon2")
        self._unknown = self._hasher.hash("unknown account")
        self._places: Counter[Purpose] = Counter()
        self._waiting: dict[Purpose, deque[asyncio.Future[None]]] = {
            purpose: deque() for purpose in Purpose
        }
        self._log_ins_in_a_row = 0

    @contextmanager
    def place(self, purpose: Purpose) -> Iterator["Place"]:
        """Take a place in the queue of `purpose`, for everything that one call hashes.

        RESOURCE_EXHAUSTED with PASSWORDS_BUSY if the queue is full. Take the place before any work
        is done for the call: a refused call then costs nothing.
        """
        if self._places[purpose] >= _PLACES[purpose]:
            raise ServiceError(
                Code.RESOURCE_EXHAUSTED,
                "PASSWORDS_BUSY",
                f"Too many clients {purpose.value} at this moment.",
                retry_after=1,
            )
        self._places[purpose] += 1
        try:
            yield Place(self, purpose)
        finally:
            self._places[purpose] -= 1

    async def hash(self, purpose: Purpose, password: str) -> str:
        """See Place.hash."""
        return await self._run(purpose, self._hasher.hash, normal(password))

    async def verify(self, purpose: Purpose, password_hash: str | None, password: str) -> Verdict:
        """See Place.verify."""
        known = password_hash or self._unknown
        verdict = await self._run(purpose, self._verdict, known, normal(password))
        return verdict if password_hash else Verdict(fits=False)

    def _verdict(self, password_hash: str, password: str) -> Verdict:
        try:
            self._hasher.verify(password_hash, password)
        except VerificationError:
            return Verdict(fits=False)
        old = self._hasher.check_needs_rehash(password_hash)
        return Verdict(fits=True, renewed=self._hasher.hash(password) if old else None)

    async def _run(self, purpose: Purpose, function: Callable[..., T], *args: str) -> T:
        """Run `function` in a thread, once it is the turn of the call.

        The turn ends with the thread's work, not with the call: a caller that gives up early
        doesn't make room for more work than there are threads.
        """
        await self._turn(purpose)
        loop = asyncio.get_running_loop()

        def end(_: ThreadFuture[T]) -> None:
            with suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(self._end_turn)

        work = self._threads.submit(function, *args)
        work.add_done_callback(end)
        return await asyncio.wrap_future(work)

    async def _turn(self, purpose: Purpose) -> None:
        if self._free > 0:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[purpose].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn had come at the same moment
                self._end_turn()
            raise

    def _end_turn(self) -> None:
        while queue := self._next_queue():
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _next_queue(self) -> deque[asyncio.Future[None]] | None:
        """Return the queue whose first call is next; None if nothing waits."""
        log_ins = self._waiting[Purpose.LOG_IN]
        rest = self._waiting[Purpose.PASSWORD_CHANGE] or self._waiting[Purpose.SIGN_UP]
        if log_ins and not (rest and self._log_ins_in_a_row >= _LOG_INS_IN_A_ROW):
            self._log_ins_in_a_row += 1
            return log_ins
        self._log_ins_in_a_row = 0
        return rest or None

    def close(self) -> None:
        """End the threads; hashes that wait are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the queue of a purpose: the call that has it may hash and verify."""

    _passwords: Passwords
    _purpose: Purpose

    async def hash(self, password: str) -> str:
        """Return the hash of `password`, with its salt and parameters."""
        return await self._passwords.hash(self._purpose, password)

    async def verify(self, password_hash: str | None, password: str) -> Verdict:
        """Return whether `password` fits; takes as long, and never fits, without a hash."""
        return await self._passwords.verify(self._purpose, password_hash, password)


def normal(password: str) -> str:
    """Return the form in which passwords are compared and hashed."""
    return unicodedata.normalize("NFC", password)
