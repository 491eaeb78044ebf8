"""`just bench scale`: reads of a million posts by 100,000 people with five million likes.

The rival of each read is its database query alone, by the same drivers and with the same
concurrency (see bench/scale/queries.py). The databases are filled once, which takes some minutes,
and are kept for the next run. BENCH_QUICK reduces the scale to a fiftieth.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import httpx

from bench.report import Result
from bench.rpc.contenders import QUICK, virtual_host
from tools.servers import servers

__all__ = ["run"]

_PROGRAM: Final = Path(__file__).with_name("program.py")
_POSTS: Final = 20_000 if QUICK else 1_000_000
_SECONDS: Final = 1.0 if QUICK else 4.0


def run() -> list[Result]:
    """Fill the databases if necessary, and measure."""
    with servers("bench") as addresses, virtual_host(addresses) as amqp_url:
        path = f"/bench_scale_{_POSTS}"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(["", *sys.path]),
            "POSTBUS_AMQP_URL": amqp_url,
            "POSTBUS_POSTGRES_URL": str(httpx.URL(addresses.postgres_url).copy_with(path=path)),
            "POSTBUS_MONGO_URL": str(httpx.URL(addresses.mongo_url).copy_with(path=path)),
        }
        command = [sys.executable, str(_PROGRAM), str(_POSTS), str(_SECONDS)]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        ) as program:
            measured: dict[str, Any] = {}
            for line in program.stdout or ():
                if line.startswith("{"):
                    measured = json.loads(line)
                else:
                    print(line, end="", flush=True)
            if program.wait():
                raise RuntimeError("the measurement failed; its output is above")
    return [*_reads(measured["reads"]), *map(_memory, measured["memory"])]


def _reads(reads: list[dict[str, Any]]) -> list[Result]:
    found = {(each["name"], each["concurrency"], each["path"]): each for each in reads}
    return [
        Result(
            measure=f"scale: {name}, {concurrency} at once, {about}",
            unit="ms",
            ours=found[name, concurrency, "rest"][part],
            rivals={
                "over the bus": found[name, concurrency, "bus"][part],
                "the database query alone": found[name, concurrency, "query"][part],
            },
        )
        for name, concurrency in dict.fromkeys(
            (each["name"], each["concurrency"]) for each in reads
        )
        for part, about in (("p50", "median"), ("p99", "99th percentile"))
    ]


def _memory(resident: dict[str, Any]) -> Result:
    return Result(
        measure=f"scale: memory of {resident['worker']} after 2,000 pages of 100",
        unit="MiB",
        ours=resident["after"],
        rivals={"before": resident["before"]},
    )
