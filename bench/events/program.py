"""Publish events with writes, or consume them: program.py postgres|mongo|consumer."""

import asyncio
import json
import os
import sys
import time
from uuid import uuid4

import httpx
import uvloop
from pydantic import SecretStr

from bench.events.baselines import (
    EVENT_TYPE,
    TEXT,
    Write,
    mongo_baseline,
    new_event,
    postgres_baseline,
)
from postbus.bus.v1 import Event
from shared.bus.amqp import connect
from shared.outbox.inbox import Operation
from shared.outbox.outbox import EncodedEvent
from shared.outbox.relay import relay
from shared.outbox.unit_of_work import current_unit_of_work
from shared.runtime import gc_tuning
from shared.wire import decode
from tests.notes import Notes, mongo_notes, postgres_notes

URL = SecretStr(os.environ["BENCH_URL"])
DATABASE_URL = os.environ["BENCH_DATABASE_URL"]
SECONDS = float(os.environ["BENCH_SECONDS"])
CONCURRENCY = 32


def print_line(result: object) -> None:
    print(result if isinstance(result, str) else json.dumps(result), flush=True)


async def rate(write: Write) -> float:
    """Return the number of writes per second, measured after one second of warm-up."""
    done, running = 0, True

    async def repeat() -> None:
        nonlocal done
        while running:
            await write()
            done += 1

    tasks = [asyncio.create_task(repeat()) for _ in range(CONCURRENCY)]
    await asyncio.sleep(1)
    before, began = done, time.perf_counter()
    await asyncio.sleep(SECONDS)
    measured = (done - before) / (time.perf_counter() - began)
    running = False
    await asyncio.gather(*tasks)
    return measured


async def write(notes: Notes, event: Event) -> None:
    """Perform an operation that inserts a note and publishes an event."""

    async def handler() -> bytes:
        await notes.add(TEXT)
        if unit := current_unit_of_work():
            unit.events.append(event)
        return TEXT.encode()

    await notes.store.perform(Operation(key=Operation.key_of(event.id), fingerprint=b"f"), handler)


async def measure(notes: Notes) -> dict[str, object]:
    """Measure the rate of writes without and with a relay, and the delay at 100 writes/s."""

    async def drop(_event: EncodedEvent) -> None:
        pass

    stored = await rate(lambda: write(notes, new_event("stored")))
    while await notes.store.forward(drop):
        pass
    async with connect(URL, "bench") as bus:
        await bus.wait_ready()
        relaying = asyncio.create_task(relay(notes.store, bus.publish_encoded))
        gc_tuning.freeze()
        writes = await rate(lambda: write(notes, new_event(f"rate {uuid4()}")))
        while await notes.store.forward(bus.publish_encoded):
            pass
        await asyncio.sleep(1)
        committed: dict[str, float] = {}
        for _ in range(int(SECONDS * 100)):
            event = new_event("delay")
            await write(notes, event)
            committed[event.id] = time.time()
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        await bus.publish(new_event("end"))
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)
    return {"stored": stored, "writes": writes, "committed": committed}


async def writer(database: str) -> None:
    notes = postgres_notes if database == "postgres" else mongo_notes
    baseline = postgres_baseline if database == "postgres" else mongo_baseline
    paths: list[str] = []

    def unique(prefix: str) -> str:
        paths.append(f"{prefix}{uuid4().hex[:8]}")
        return paths[-1]

    async with notes(DATABASE_URL, unique) as opened:
        url = httpx.URL(DATABASE_URL).copy_with(path=paths[-1])
        async with baseline(str(url)) as (bare, rows, clear):
            result = {"bare": await rate(bare), "stack": await rate(lambda: opened.add(TEXT))}

            async def clear_repeatedly() -> None:
                while True:
                    await clear()
                    await asyncio.sleep(0.001)

            clearing = asyncio.create_task(clear_repeatedly())
            result["rows"] = await rate(rows)
            clearing.cancel()
            await asyncio.gather(clearing, return_exceptions=True)
            for _ in range(1000):
                await clear()
        print_line(result | await measure(opened))


async def consumer() -> None:
    at: dict[str, float] = {}
    times: list[float] = []
    ended = asyncio.Event()

    async def handler(body: bytes) -> None:
        event = decode(Event, body)
        if event.subject.startswith("rate"):
            times.append(time.perf_counter())
        elif event.subject == "delay":
            at[event.id] = time.time()
        else:
            ended.set()

    async with connect(URL, "bench") as bus:
        subscription = await bus.subscribe([EVENT_TYPE], handler, queue="bench.events")
        gc_tuning.freeze()
        print_line("READY")
        await ended.wait()
        await subscription.cancel()
    print_line({"count": len(times), "seconds": times[-1] - times[0], "at": at})


if __name__ == "__main__":
    role = sys.argv[1]
    uvloop.run(consumer() if role == "consumer" else writer(role))
