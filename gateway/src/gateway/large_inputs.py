"""Parsing of large inputs in a thread: on the event loop it would block other tasks up to 20 ms.

The thread holds the GIL only during each single call into C (at most about 5 ms for a megabyte),
or for `SWITCH_SECONDS` in Python. There is one thread: a second one would compete with the loop.
"""

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

__all__ = ["LARGE_BYTES", "SWITCH_SECONDS", "read_in_thread"]

P = ParamSpec("P")
T = TypeVar("T")

LARGE_BYTES: Final = 16 * 1024
"""Bodies and messages above this size are parsed in the thread. The costliest JSON of this size,
2,400 small objects and one repeated name, takes 3 ms; that of 1 MB takes 20 ms."""
SWITCH_SECONDS: Final = 0.001
"""Longest time that the event loop waits for a thread that runs Python, set once the thread starts.
Python's default of 5 ms is longer than most iterations of the loop."""
_THREAD: Final = ThreadPoolExecutor(
    1,
    thread_name_prefix="large",
    initializer=sys.setswitchinterval,
    initargs=(SWITCH_SECONDS,),
)


async def read_in_thread(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return the result of `read`, which runs in the thread after all earlier calls."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_THREAD, lambda: read(*args, **kwargs))
