"""Password hashes: argon2id, off the event loop, a bounded number at once."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError

T = TypeVar("T")

__all__ = ["Passwords"]

_THREADS = 2
"""Each hash takes 64 MiB and a core for tens of milliseconds."""


class Passwords:
    """Hashes and verifies passwords; `close` when done."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="argon2")
        self._nobodys = self._hasher.hash("nobody")

    async def hash(self, password: str) -> str:
        """Return the hash of `password`, with its salt and parameters."""
        return await self._run(self._hasher.hash, password)

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Tell whether `password` fits; takes as long where there is no hash to fit."""
        fits = await self._run(self._fits, password_hash or self._nobodys, password)
        return fits and password_hash is not None

    def _fits(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except VerificationError:
            return False

    async def _run(self, function: Callable[..., T], *args: str) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def close(self) -> None:
        """End the threads; hashes that wait are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
