"""`just bench events`: writes with an event each, through inbox, outbox and relay to a consumer.

One process writes, first without and then with a relay; another process consumes. Each event has a
subject of its own, because the relay publishes the events of one subject one by one. The rivals
have no bus: a bare write without inbox and outbox, by the same libraries (SQLAlchemy in a
transaction, ODMantic without) and by the driver alone; and the same rows in the same transactions,
by the driver alone.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench.report import Result
from bench.rpc.contenders import QUICK, virtual_host
from tools.servers import servers

__all__ = ["run"]

_PROGRAM: Final = Path(__file__).with_name("program.py")
_ROUNDS: Final = 1 if QUICK else 3
_SECONDS: Final = 2 if QUICK else 5
_DATABASES: Final = {"PostgreSQL": "postgres", "MongoDB": "mongo"}


def run() -> list[Result]:
    """Measure both databases alternately, in several rounds."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in _DATABASES}
    with servers("bench") as addresses, virtual_host(addresses) as url:
        urls = {"postgres": addresses.postgres_url, "mongo": addresses.mongo_url}
        for number in range(_ROUNDS):
            for name, database in _DATABASES.items():
                print(f"bench: events: round {number + 1} of {_ROUNDS}: {name}", flush=True)
                rounds[name].append(_measure(database, urls[database], url))
    return [result for name, measured in rounds.items() for result in _results(name, measured)]


def _measure(database: str, database_url: str, amqp_url: str) -> dict[str, float]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(["", *sys.path]),
        "BENCH_URL": amqp_url,
        "BENCH_DATABASE_URL": database_url,
        "BENCH_SECONDS": str(_SECONDS),
    }
    command = [sys.executable, str(_PROGRAM)]
    with subprocess.Popen(
        [*command, "consumer"], env=environment, stdout=subprocess.PIPE, text=True
    ) as consumer:
        lines = iter(consumer.stdout or ())
        try:
            if "READY\n" not in lines:  # consumes the lines up to this one
                raise RuntimeError("the consumer did not start")
            writer = subprocess.run(
                [*command, database], env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
        except BaseException:
            consumer.kill()
            raise
        writer_result: dict[str, Any] = json.loads(writer.stdout.splitlines()[-1])
        received: dict[str, Any] = json.loads(list(lines)[-1])
    committed = writer_result.pop("committed")
    delays = sorted(1e3 * (received["at"][id_] - at) for id_, at in committed.items())
    return writer_result | {
        "events": received["count"] / received["seconds"],
        "p50": delays[len(delays) // 2],
        "p99": delays[int(len(delays) * 0.99)],
    }


def _results(name: str, rounds: list[dict[str, float]]) -> Iterator[Result]:
    median = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    rivals = {
        "bare write, same libraries": median["stack"],
        "the same rows, driver alone": median["rows"],
        "bare write in a transaction, driver alone": median["bare"],
    }
    yield Result(
        measure=f"events: {name}: writes with inbox and outbox, undelivered, 32 at once",
        unit="writes/s",
        ours=median["stored"],
        rivals=rivals,
    )
    yield Result(
        measure=f"events: {name}: writes with an event, 32 at once",
        unit="writes/s",
        ours=median["writes"],
        rivals=rivals,
    )
    yield Result(
        measure=f"events: {name}: events at the consumer",
        unit="events/s",
        ours=median["events"],
        rivals=rivals,
    )
    yield Result(
        measure=f"events: {name}: from commit to consumer, median, 100 a second",
        unit="ms",
        ours=median["p50"],
        rivals={},
    )
    yield Result(
        measure=f"events: {name}: from commit to consumer, 99th percentile, 100 a second",
        unit="ms",
        ours=median["p99"],
        rivals={},
    )
