"""Run a service and record the longest step of its event loop: probe.py SERVICE.

The file named by PROBE_FILE holds one double: the most processor time, in seconds, that a single
callback of the loop has taken since the reader last set it to zero.
"""

import asyncio
import mmap
import os
import runpy
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvloop


def main(service: str) -> None:
    """Run `python -m service` on asyncio's own loop, and time its callbacks."""
    with Path(os.environ["PROBE_FILE"]).open("r+b") as file:
        longest = memoryview(mmap.mmap(file.fileno(), 8)).cast("d")
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        try:
            run(handle)
        finally:
            longest[0] = max(longest[0], time.thread_time() - began)

    asyncio.Handle._run = timed  # type: ignore[assignment, method-assign]

    def run_on_asyncio(work: Coroutine[Any, Any, None]) -> None:
        asyncio.run(work)

    uvloop.run = run_on_asyncio  # type: ignore[assignment]
    sys.argv = [service]
    runpy.run_module(service, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
