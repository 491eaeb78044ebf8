"""`just bench scale`: reads of a million posts by 100,000 people with five million likes.

Beside each the database query alone, through the same drivers and at as many at once (see
bench/scale/alone.py). The databases are filled once, which takes some minutes, and stay. With
BENCH_QUICK it is a fiftieth.
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
    """Fill the databases unless they are full, and measure."""
    with servers("bench") as addresses, virtual_host(addresses) as amqp_url:
        own = f"/bench_scale_{_POSTS}"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(["", *sys.path]),
            "POSTBUS_AMQP_URL": amqp_url,
            "POSTBUS_POSTGRES_URL": str(httpx.URL(addresses.postgres_url).copy_with(path=own)),
            "POSTBUS_MONGO_URL": str(httpx.URL(addresses.mongo_url).copy_with(path=own)),
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
                raise RuntimeError("the measurement failed: see above")
    return [*_reads(measured["reads"]), *map(_memory, measured["memory"])]


def _reads(reads: list[dict[str, Any]]) -> list[Result]:
    found = {(each["name"], each["at_once"], each["way"]): each for each in reads}
    return [
        Result(
            measure=f"scale: {name}, {at_once} at once, {about}",
            unit="ms",
            ours=found[name, at_once, "rest"][part],
            rivals={
                "over the bus": found[name, at_once, "bus"][part],
                "the database query alone": found[name, at_once, "alone"][part],
            },
        )
        for name, at_once in dict.fromkeys((each["name"], each["at_once"]) for each in reads)
        for part, about in (("p50", "median"), ("p99", "99th percentile"))
    ]


def _memory(held: dict[str, Any]) -> Result:
    return Result(
        measure=f"scale: memory of {held['worker']} after 2,000 pages of 100",
        unit="MiB",
        ours=held["after"],
        rivals={"before": held["before"]},
    )
