"""`just bench rpc`: calls through the broker beside rivals on the same machine.

One client process, one worker process, payloads of about 300 bytes; the contenders take turns, and
each measure is the median of all rounds. Postbus is measured twice: whole (stub, envelope,
validation at the worker, dispatch, handler, acknowledged after the reply), and its data plane alone
(bytes in, bytes out).
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import httpx

from bench.process import cpu_seconds, pid_listening
from bench.report import Result
from bench.rpc.contenders import (
    QUICK,
    Contender,
    FailedError,
    Load,
    installed,
    running,
    virtual_host,
)
from tools.servers import servers

__all__ = ["run"]

_IN_FLIGHT: Final = (1, 16, 64, 256)
_ROUNDS: Final = 1 if QUICK else 3
_LOAD: Final = Load(in_flight=_IN_FLIGHT, seconds=1.0 if QUICK else 3.0)

Measures = dict[str, float]
"""Measures at one number in flight: `rate` in calls/s, `p50`, `p99` and `cpu` per call in ms."""


def run() -> list[Result]:
    """Install the rivals, run all in turn, and compare."""
    contenders = list(installed())
    measured: dict[str, list[dict[int, Measures]]] = {each.name: [] for each in contenders}
    with servers("bench") as addresses, virtual_host(addresses) as url:
        for number in range(_ROUNDS):
            for contender in contenders:
                print(f"bench: rpc: round {number + 1} of {_ROUNDS}: {contender.name}", flush=True)
                try:
                    measured[contender.name].append(_measure(contender, url))
                except FailedError as error:
                    if contender.name.startswith("ours"):  # nothing is left to compare
                        raise
                    print(f"bench: rpc: {contender.name} failed: {error}", flush=True)
    return list(_results({name: _median(rounds) for name, rounds in measured.items() if rounds}))


def _measure(contender: Contender, url: str) -> dict[int, Measures]:
    """Run worker and client of a contender once; return the measures by number in flight."""
    port = httpx.URL(url).port
    broker = pid_listening(port) if port else None
    with (
        running(contender, "worker", url, _LOAD) as worker,
        running(contender, "client", url, _LOAD, ready="GO") as client,
    ):
        found: dict[int, Measures] = {}
        pids = [client.pid, worker.pid, *([broker] if broker else [])]
        before = 1000 * cpu_seconds(pids)
        for line in client.stdout or ():
            if line.strip() == "GO":
                before = 1000 * cpu_seconds(pids)
            elif line.startswith("{"):
                told = json.loads(line)
                used = (1000 * cpu_seconds(pids) - before) / told["calls"]
                found[told["in_flight"]] = {
                    "rate": told["rate"],
                    "p50": told["p50"],
                    "p99": told["p99"],
                    "cpu": used,
                }
            if len(found) == len(_IN_FLIGHT):
                return found
    raise FailedError("its client ended early")


def _median(rounds: Sequence[dict[int, Measures]]) -> dict[int, Measures]:
    return {
        in_flight: {
            name: statistics.median(each[in_flight][name] for each in rounds)
            for name in rounds[0][in_flight]
        }
        for in_flight in rounds[0]
    }


_PLANES: Final = ("librabbitmq in C", "amqplib in Node")


def _results(medians: Mapping[str, dict[int, Measures]]) -> Iterator[Result]:
    whole = [name for name in medians if name not in {"ours", "ours, bytes", *_PLANES}]
    bare = [name for name in _PLANES if name in medians]
    for title, ours, rivals in (("rpc", "ours", whole), ("rpc, bytes", "ours, bytes", bare)):

        def result(
            measure: str,
            unit: str,
            in_flight: int,
            name: str,
            title: str = title,
            ours: str = ours,
            rivals: Sequence[str] = rivals,
        ) -> Result:
            return Result(
                measure=f"{title}: {measure}, {in_flight} in flight",
                unit=unit,
                ours=medians[ours][in_flight][name],
                rivals={rival: medians[rival][in_flight][name] for rival in rivals},
            )

        yield from (result("calls", "calls/s", number, "rate") for number in _IN_FLIGHT)
        yield result("median latency", "ms", 1, "p50")
        yield result("99th percentile", "ms", 64, "p99")
        yield result("CPU of client, worker and broker", "ms/call", 64, "cpu")
