"""Parsing of large inputs in a thread: on the event loop it would block other tasks up to 20 ms.

The thread holds the GIL only during each single call into C (at most about 5 ms for a megabyte),
or for `SWITCH_SECONDS` in Python. There is one thread: a second one would compete with the loop.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar, cast

from postbus import reasons
from shared.errors import Outcome, ServiceError, deadline_exceeded

__all__ = ["LARGE_BYTES", "MAX_WAITING", "SWITCH_SECONDS", "LargeInputs"]

T = TypeVar("T")

LARGE_BYTES: Final = 16 * 1024
"""Bodies and messages above this size are parsed in the thread. The costliest JSON of this size,
2,400 small objects and one repeated name, takes 3 ms; that of 1 MB takes 20 ms."""
MAX_WAITING: Final = 8
"""Most inputs of one client that wait for the thread."""
SWITCH_SECONDS: Final = 0.001
"""Longest time that the event loop waits for a thread that runs Python, set once the thread starts.
Python's default of 5 ms is longer than most iterations of the loop."""
_RETRY_SECONDS: Final = 1.0
"""`Retry-After` of a refused input."""
_THREAD: Final = ThreadPoolExecutor(
    1,
    thread_name_prefix="large",
    initializer=sys.setswitchinterval,
    initargs=(SWITCH_SECONDS,),
)


class _Job:
    """The reading of one input.

    The outcome is not that of the executor's future, which refers to itself by its callbacks: the
    input would stay in memory until the garbage collector runs.
    """

    __slots__ = ("_error", "_read", "_value", "result")

    def __init__(self, read: Callable[[], Any], result: "asyncio.Future[Any]") -> None:
        self.result = result
        self._read = read
        self._value: Any = None
        self._error: Exception | None = None

    def run(self) -> None:
        """Read the input, in the thread."""
        try:
            self._value = self._read()
        except Exception as error:  # noqa: BLE001  # raised again by the result
            self._error = error

    def finish(self) -> None:
        """Set the result, on the event loop."""
        result, value, error = self.result, self._value, self._error
        self._value = self._error = None
        del self.result  # the frames of an error refer to this job
        if result.done():
            return
        if error is None:
            result.set_result(value)
        else:
            result.set_exception(error)


class LargeInputs:
    """Runs the reading of large inputs in the thread, one input of each client in turn.

    A client is a user or, without a token, an address.
    """

    def __init__(self) -> None:
        self._lines: dict[str, deque[_Job]] = {}
        """The waiting jobs of each client; the next turn is that of the first client."""
        self._running = False

    async def read(self, client: str, seconds: float, read: Callable[[], T]) -> T:
        """Return the result of `read`, which runs in the thread.

        Raises RESOURCE_EXHAUSTED if `client` has `MAX_WAITING` waiting inputs, DEADLINE_EXCEEDED
        after `seconds`. Then, and if the calling task is cancelled, a waiting input is dropped.
        """
        job = _Job(read, asyncio.get_running_loop().create_future())
        self._append(client, job)
        if not self._running:
            self._start_next()
        try:
            async with asyncio.timeout(seconds):
                return cast("T", await job.result)
        except TimeoutError:
            raise deadline_exceeded(Outcome.NO_EFFECT) from None
        finally:
            self._remove(client, job)

    def __len__(self) -> int:
        """Return the number of waiting inputs."""
        return sum(map(len, self._lines.values()))

    def _append(self, client: str, job: _Job) -> None:
        line = self._lines.get(client)
        if line is None:
            line = self._lines[client] = deque()
        if len(line) >= MAX_WAITING:
            raise ServiceError(
                reasons.TOO_MANY_LARGE_INPUTS,
                f"You have {MAX_WAITING} bodies or messages above 16 KiB that wait to be read.",
                retry_after=_RETRY_SECONDS,
            )
        line.append(job)

    def _remove(self, client: str, job: _Job) -> None:
        line = self._lines.get(client)
        if line is None or job not in line:
            return
        line.remove(job)
        if not line:
            del self._lines[client]

    def _start_next(self) -> None:
        job = self._next()
        self._running = job is not None
        if job is not None:
            reading = asyncio.get_running_loop().run_in_executor(_THREAD, job.run)
            reading.add_done_callback(lambda _: self._finish(job))

    def _next(self) -> _Job | None:
        """Remove and return the next job; None if none waits."""
        while self._lines:
            client = next(iter(self._lines))
            line = self._lines.pop(client)
            job = line.popleft()
            if line:
                self._lines[client] = line
            if not job.result.done():  # else its client has left, or its deadline has passed
                return job
        return None

    def _finish(self, job: _Job) -> None:
        self._start_next()
        job.finish()
