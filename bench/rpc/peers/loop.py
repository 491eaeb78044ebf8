"""The closed loop of calls of the Python programs, and its output.

A worker prints READY; a client prints GO as the measured time begins and a line of JSON at its end,
for each number of calls in flight.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import uvloop

URL = os.environ["BENCH_URL"]
POST: dict[str, str] = json.loads(Path(os.environ["BENCH_PAYLOAD"]).read_text())
BODY = json.dumps(POST).encode()
NEW_ID = "018f3b6e-7b1a-7c44-9d0e-5f2a1b3c4d5e"
IN_FLIGHT = [int(number) for number in os.environ.get("BENCH_IN_FLIGHT", "64").split(",")]
SECONDS = float(os.environ.get("BENCH_SECONDS", "3"))
WARM_UP = 1.0


def say(message: object) -> None:
    """Print a line and flush it."""
    print(message if isinstance(message, str) else json.dumps(message), flush=True)


def tell(in_flight: int, latencies: list[float], seconds: float) -> None:
    """Print the result at one number in flight."""
    latencies.sort()
    calls = len(latencies)
    say(
        {
            "in_flight": in_flight,
            "calls": calls,
            "rate": calls / seconds,
            "p50": latencies[calls // 2] * 1e3,
            "p99": latencies[min(calls - 1, int(calls * 0.99))] * 1e3,
        }
    )


async def closed_loop(call: Callable[[], Awaitable[object]]) -> None:
    """Keep `in_flight` calls in flight; each is followed by the next."""
    for in_flight in IN_FLIGHT:
        latencies: list[float] = []
        running = [True]

        async def one(latencies: list[float] = latencies, running: list[bool] = running) -> None:
            while running:
                began = time.perf_counter()
                await call()
                latencies.append(time.perf_counter() - began)

        tasks = [asyncio.create_task(one()) for _ in range(in_flight)]
        await asyncio.sleep(WARM_UP)
        latencies.clear()
        began = time.perf_counter()
        say("GO")
        await asyncio.sleep(SECONDS)
        measured, took = latencies.copy(), time.perf_counter() - began
        tell(in_flight, measured, took)
        running.clear()
        await asyncio.gather(*tasks)


def run(worker: Callable[[], Awaitable[None]], client: Callable[[], Awaitable[None]]) -> None:
    """Run as worker or client, as the command line says."""
    role = {"worker": worker, "client": client}[sys.argv[1]]

    async def main() -> None:
        await role()

    uvloop.run(main())


async def for_ever() -> None:
    """Print that the worker is ready, and run until the process is stopped."""
    say("READY")
    await asyncio.Future()


def arguments() -> Sequence[str]:
    """Return the arguments after the role."""
    return sys.argv[2:]
