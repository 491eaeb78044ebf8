"""`just bench http`: a POST of about 300 bytes through a gateway and RabbitMQ to a worker and back.

One gateway process, one worker process and wrk share the machine. The contenders run in turn, and
each figure is the median of all rounds. Ours verifies a token, validates in gateway and worker and
counts rates; the rivals validate nothing, except for FastAPI's validation of the body.
`bench/http/sockets.py` adds the WebSocket, `bench/http/reads.py` a read with and without a token on
the real system.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import httpx

from bench.http.contenders import CONNECTIONS, Contender, installed, load, running
from bench.http.reads import reads
from bench.http.sockets import sockets
from bench.process import cpu_seconds, pid_listening
from bench.report import Result
from bench.rpc.contenders import QUICK, FailedError, virtual_host
from tools.servers import servers

__all__ = ["run"]

_ROUNDS: Final = 1 if QUICK else 2
_SECONDS: Final = 1 if QUICK else 4
_PAUSE_SECONDS: Final = 4
"""Pause between two runs of wrk: without it, the second run has delays that wrk itself causes."""

Figures = dict[str, float]
"""Figures for one number of connections: `rate` in requests/s, `p50` and `p99` in ms, and CPU in
seconds per 1,000 requests: `cpu` of the gateway, `all` of gateway, worker and broker."""


def run() -> list[Result]:
    """Install the rivals, run all contenders in turn, and compare them."""
    contenders = list(installed())
    measured: dict[str, list[dict[int, Figures]]] = {each.name: [] for each in contenders}
    with servers("bench") as addresses, virtual_host(addresses) as url:
        for number in range(_ROUNDS):
            for contender in contenders:
                print(f"bench: http: round {number + 1} of {_ROUNDS}: {contender.name}", flush=True)
                try:
                    measured[contender.name].append(_measure(contender, url))
                except FailedError as error:
                    if contender.name.startswith("ours"):  # nothing is left to compare
                        raise
                    print(f"bench: http: {contender.name} failed: {error}", flush=True)
        ours = contenders[0]
        more = [*sockets(ours, url), *reads(addresses, url)]
    return [*_results({name: _median(each) for name, each in measured.items() if each}), *more]


def _measure(contender: Contender, url: str) -> dict[int, Figures]:
    """Run a contender once; return its figures by number of connections."""
    broker = pid_listening(httpx.URL(url).port or 5672)
    found: dict[int, Figures] = {}
    with running(contender, url) as (gateway, worker):
        processes = [each for each in (gateway, worker, broker) if each]
        for connections in CONNECTIONS:
            load(contender, connections, 1)
            time.sleep(_PAUSE_SECONDS)
            before = cpu_seconds([gateway]), cpu_seconds(processes)
            figures = load(contender, connections, _SECONDS)
            after = cpu_seconds([gateway]), cpu_seconds(processes)
            thousands = figures["requests"] / 1000
            found[connections] = figures | {
                "cpu": (after[0] - before[0]) / thousands,
                "all": (after[1] - before[1]) / thousands,
            }
            time.sleep(_PAUSE_SECONDS)
    return found


def _median(rounds: Sequence[dict[int, Figures]]) -> dict[int, Figures]:
    return {
        connections: {
            name: statistics.median(each[connections][name] for each in rounds)
            for name in rounds[0][connections]
        }
        for connections in rounds[0]
    }


def _results(medians: Mapping[str, dict[int, Figures]]) -> Iterator[Result]:
    rivals = [name for name in medians if name != "ours"]

    def result(measure: str, unit: str, connections: int, name: str) -> Result:
        return Result(
            measure=f"http: {measure}, {connections} connections",
            unit=unit,
            ours=medians["ours"][connections][name],
            rivals={rival: medians[rival][connections][name] for rival in rivals},
        )

    yield from (result("requests", "requests/s", number, "rate") for number in CONNECTIONS)
    yield from (result("99th percentile", "ms", number, "p99") for number in CONNECTIONS)
    yield result("median latency", "ms", 1, "p50")
    yield result("CPU of the gateway", "s/1,000 requests", 64, "cpu")
    yield result("CPU of gateway, worker and broker", "s/1,000 requests", 64, "all")
