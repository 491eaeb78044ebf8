"""Faults of gateways and workers."""

import asyncio
import os
import signal
from typing import Final

from tests.clocks import clock_settings, find_faketime
from tests.faults.chaos.matrix import GATEWAYS, WORKERS, NotPossibleError, Place, Row, row
from tests.people import eventually
from tools.servers.errors import ServersUnavailableError

__all__ = ["PROCESS_ROWS"]

_READY: Final = '"worker.ready"'
"""The log event of a worker that serves."""
_START_SECONDS: Final = 60.0


async def _start(place: Place, *names: str, **settings: str) -> None:
    """Start processes; return when each of them serves."""
    before = {name: place.system.log(name).count(_READY) for name in names}
    await place.system.start(*names, **settings)

    async def all_serve() -> bool:
        return all(place.system.log(name).count(_READY) > before[name] for name in names)

    if names[0] in GATEWAYS:
        await place.system.until_ready(_START_SECONDS, url=place.system.url_of(names[0]))
    else:
        await eventually(all_serve, _START_SECONDS)


@row("1", "SIGKILL of one worker of two", part="processes", allowed=1)
async def one_worker_killed(place: Place) -> None:
    name = place.dice.choice(WORKERS)
    await place.system.kill(name)
    await asyncio.sleep(2)
    await _start(place, name)


@row("1", "SIGKILL of all workers of a service", part="processes", allowed=2)
async def all_workers_killed(place: Place) -> None:
    service = place.dice.choice(("posts", "users"))
    names = [name for name in WORKERS if name.startswith(service)]
    await asyncio.gather(*(place.system.kill(name) for name in names))
    await asyncio.sleep(2)
    await _start(place, *names)


@row("2", "SIGKILL of all workers after the commit, before the reply", part="processes", allowed=2)
async def killed_before_the_reply(place: Place) -> None:
    place.proxies["rabbitmq"].hold_client_bytes()
    await _kill_workers_while_held(place)


@row("3", "SIGKILL of all workers before the confirm of events", part="processes", allowed=2)
async def killed_before_the_confirm(place: Place) -> None:
    place.proxies["rabbitmq"].hold_server_bytes()
    await _kill_workers_while_held(place)


async def _kill_workers_while_held(place: Place) -> None:
    """Kill the workers and lose what the proxy holds; the gateways lose their connections too."""
    broker = place.proxies["rabbitmq"]
    try:
        await asyncio.sleep(1)
        await asyncio.gather(*(place.system.kill(name) for name in WORKERS))
    finally:
        broker.break_()
        broker.flow()
    await _start(place, *WORKERS)


@row("4", "SIGKILL of a gateway", part="processes", allowed=2)
async def gateway_killed(place: Place) -> None:
    await place.system.kill("gateway-2")
    await asyncio.sleep(1)
    await _start(place, "gateway-2")


@row("5", "SIGTERM of all processes in turn", part="processes", allowed=2)
async def rolling_restart(place: Place) -> None:
    for name in (*WORKERS, *GATEWAYS):
        await _run_again(place, name)


@row("10", "SIGSTOP of a worker for 15 s", part="processes", allowed=3)
async def worker_frozen(place: Place) -> None:
    await _stop_and_continue(place, 15, 0)


@row("10", "SIGSTOP of a worker for 40 s", part="processes", allowed=3, when="all")
async def worker_frozen_for_40_seconds(place: Place) -> None:
    await _stop_and_continue(place, 40, 0)


@row("23", "a worker runs a fifth of the time, for 10 s", part="processes", allowed=3)
async def worker_slow(place: Place) -> None:
    await _stop_and_continue(place, 0.4, 0.1, times=20)


async def _stop_and_continue(
    place: Place, stopped: float, continued: float, times: int = 1
) -> None:
    pid = place.system.pid(place.dice.choice(WORKERS))
    try:
        for _ in range(times):
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(stopped)
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(continued)
    finally:
        os.kill(pid, signal.SIGCONT)


@row("26", "clocks of a process of each kind wrong by 30 s", part="processes", allowed=2)
async def clocks_wrong(place: Place) -> None:
    try:
        faketime = await asyncio.to_thread(find_faketime)
    except ServersUnavailableError as error:
        raise NotPossibleError(f"libfaketime is missing: {error}") from error
    names = ("posts-2", "users-2", "gateway-2")
    for name in names:
        seconds = place.dice.choice((30, -30))
        await _run_again(place, name, **clock_settings(faketime, seconds))
    await asyncio.sleep(8)
    for name in names:
        await _run_again(place, name)


async def _run_again(place: Place, name: str, **settings: str) -> None:
    await place.system.stop(name, 20)
    await _start(place, name, **settings)


PROCESS_ROWS: Final[tuple[Row, ...]] = (
    one_worker_killed,
    all_workers_killed,
    killed_before_the_reply,
    killed_before_the_confirm,
    gateway_killed,
    rolling_restart,
    worker_frozen,
    worker_frozen_for_40_seconds,
    worker_slow,
    clocks_wrong,
)
