"""Faults of RabbitMQ: of its connections, its process, its objects and its resources."""

import asyncio
import signal
from contextlib import suppress
from typing import Final
from urllib.parse import quote

import httpx

from tests.faults.chaos.faults import (
    end_and_start,
    management,
    path_of,
    require_process,
    stalled,
    unreachable,
)
from tests.faults.chaos.matrix import Place, Row, row

__all__ = ["BROKER_ROWS"]

_CONSUMER_TIMEOUT_MS: Final = 1_800_000
"""RabbitMQ's default."""


@row("6", "restart of RabbitMQ", part="rabbitmq", allowed=5)
async def broker_restarted(place: Place) -> None:
    await end_and_start(place, "rabbitmq", signal.SIGTERM)


@row("6", "RabbitMQ is unreachable for 3 s", part="rabbitmq", allowed=3)
async def broker_unreachable(place: Place) -> None:
    await unreachable(place, "rabbitmq", 3)


@row("7", "SIGKILL of RabbitMQ", part="rabbitmq", allowed=5)
async def broker_killed(place: Place) -> None:
    await end_and_start(place, "rabbitmq", signal.SIGKILL)


@row("8", "RabbitMQ does not respond for 15 s", part="rabbitmq", allowed=3)
async def broker_stalled(place: Place) -> None:
    await stalled(place, "rabbitmq", 15)


@row("9", "RabbitMQ does not respond for 90 s", part="rabbitmq", allowed=5, when="all")
async def broker_stalled_for_90_seconds(place: Place) -> None:
    await stalled(place, "rabbitmq", 90)


@row("11", "connections to RabbitMQ cut 12 times", part="rabbitmq", allowed=2)
async def broker_connections_cut(place: Place) -> None:
    for _ in range(12):
        place.proxies["rabbitmq"].break_()
        await asyncio.sleep(0.5 + place.dice.random())


@row("13", "memory alarm of RabbitMQ for 8 s", part="rabbitmq", allowed=2)
async def broker_memory_alarm(place: Place) -> None:
    setting = "{{vm_memory_monitor, set_vm_memory_high_watermark, [{}]}}"
    await _alarm(place, setting.format("0.00001"), setting.format("0.4"))


@row("14", "disk alarm of RabbitMQ for 8 s", part="rabbitmq", allowed=2)
async def broker_disk_alarm(place: Place) -> None:
    setting = "{{rabbit_disk_monitor, set_disk_free_limit, [{}]}}"
    await _alarm(place, setting.format(10**15), setting.format(50_000_000))


async def _alarm(place: Place, raised: str, ended: str) -> None:
    require_process(place, "rabbitmq")
    await place.servers.evaluate(raised)
    try:
        await asyncio.sleep(8)
        assert "resource_limit" in await place.servers.evaluate("{rabbit_alarm, get_alarms, []}")
    finally:
        await place.servers.evaluate(ended)


@row("15", "RabbitMQ is unreachable for 10 min", part="rabbitmq", allowed=5, when="by name")
async def broker_unreachable_for_10_minutes(place: Place) -> None:
    await unreachable(place, "rabbitmq", 600)


@row("24", "RabbitMQ's consumer timeout", part="rabbitmq", allowed=130, when="by name")
async def consumer_timeout(place: Place) -> None:
    """Leave deliveries unacknowledged for longer than a timeout of five seconds.

    The broker looks once a minute, at channels that were opened with this timeout.
    """
    require_process(place, "rabbitmq")
    setting = "{{application, set_env, [rabbit, consumer_timeout, {}]}}"
    await place.servers.evaluate(setting.format(5000))
    try:
        place.proxies["rabbitmq"].break_()
        await asyncio.sleep(5)
        await stalled(place, "mongodb", 80)
    finally:
        await place.servers.evaluate(setting.format(_CONSUMER_TIMEOUT_MS))
        place.proxies["rabbitmq"].break_()


@row("25", "each exchange deleted, one after the other", part="rabbitmq", allowed=12)
async def exchanges_deleted(place: Place) -> None:
    async with management(place) as api:
        names = [each["name"] for each in (await api.get(path_of(place, "exchanges"))).json()]
        for name in (name for name in names if name.startswith("postbus.")):
            await api.delete(path_of(place, "exchanges", name))
            await asyncio.sleep(0.2)


@row("25", "every third queue deleted", part="rabbitmq", allowed=12)
async def queues_deleted(place: Place) -> None:
    async with management(place) as api:
        found = (await api.get(path_of(place, "queues"))).json()
        names = [each["name"] for each in found if not each["exclusive"]]
        durable = [name for name in names if not name.endswith(".dead")]
        for name in place.dice.sample(durable, len(durable) // 3):
            await api.delete(path_of(place, "queues", name))


@row("25", "every connection closed by RabbitMQ", part="rabbitmq", allowed=3)
async def broker_closes_connections(place: Place) -> None:
    async with management(place) as api:
        found = (await api.get(f"/api/vhosts/{place.vhost}/connections")).json()
        for each in found:
            with suppress(httpx.HTTPError):
                await api.delete(f"/api/connections/{quote(each['name'], safe='')}")


BROKER_ROWS: Final[tuple[Row, ...]] = (
    broker_unreachable,
    broker_connections_cut,
    broker_restarted,
    broker_killed,
    broker_memory_alarm,
    broker_disk_alarm,
    exchanges_deleted,
    queues_deleted,
    broker_closes_connections,
    broker_stalled,
    broker_stalled_for_90_seconds,
    broker_unreachable_for_10_minutes,
    consumer_timeout,
)
