"""Password hashes: argon2id, off the event loop, a bounded number at once."""

import asyncio
import os
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError

from shared.errors import Code, ServiceError

T = TypeVar("T")

__all__ = ["Passwords"]

_MOST_WAITING: Final = 32
"""About a second of work; more would only take the handlers from other calls."""


class Passwords:
    """Hashes and verifies passwords; `close` when done.

    Both raise RESOURCE_EXHAUSTED with PASSWORDS_BUSY where too many wait. Passwords that Unicode
    holds for the same (NFC, as RFC 8265 has it) are the same.
    """

    def __init__(self) -> None:
        # what OWASP's Password Storage Cheat Sheet asks for; half the cores, for the rest has work
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        threads = max(1, (os.cpu_count() or 1) // 2)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="argon2")
        self._nobodys = self._hasher.hash("nobody")
        self._waiting = 0

    async def hash(self, password: str) -> str:
        """Return the hash of `password`, with its salt and parameters."""
        return await self._run(self._hasher.hash, _normal(password))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Tell whether `password` fits; takes as long where there is no hash to fit."""
        fits = await self._run(self._fits, password_hash or self._nobodys, _normal(password))
        return fits and password_hash is not None

    def _fits(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except VerificationError:
            return False

    async def _run(self, function: Callable[..., T], *args: str) -> T:
        if self._waiting >= _MOST_WAITING:
            raise ServiceError(
                Code.RESOURCE_EXHAUSTED,
                "PASSWORDS_BUSY",
                "Too many log in at this moment.",
                retry_after=1,
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the threads; hashes that wait are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _normal(password: str) -> str:
    return unicodedata.normalize("NFC", password)
