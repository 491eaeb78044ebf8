"""`just bench rpc`: calls through the broker, ours beside the rivals' on the same machine.

One client process, one worker process, payloads of about 300 bytes; the contenders take turns, and
each measure is the median of all rounds. Ours counts twice: whole (stub, envelope, validation at
the worker, dispatch, handler, acknowledged after the reply), and the data plane alone, bytes in and
bytes out.
"""

import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx

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
from tools.infrastructure import servers

__all__ = ["run"]

_IN_FLIGHT: Final = (1, 16, 64, 256)
_ROUNDS: Final = 1 if QUICK else 3
_LOAD: Final = Load(in_flight=_IN_FLIGHT, seconds=1.0 if QUICK else 3.0)

Measures = dict[str, float]
"""Of one number in flight: `rate` in calls/s, `p50` and `p99` in ms, `cpu` in ms for each call."""


def run() -> list[Result]:
    """Install the rivals, let all take turns, and compare."""
    contenders = list(installed())
    measured: dict[str, list[dict[int, Measures]]] = {each.name: [] for each in contenders}
    with servers("bench") as addresses, virtual_host(addresses) as url:
        for number in range(_ROUNDS):
            for contender in contenders:
                print(f"bench: rpc: round {number + 1} of {_ROUNDS}: {contender.name}", flush=True)
                try:
                    measured[contender.name].append(_measure(contender, url))
                except FailedError as error:
                    print(f"bench: rpc: {contender.name} failed: {error}", flush=True)
    return list(_results({name: _median(rounds) for name, rounds in measured.items() if rounds}))


def _measure(contender: Contender, url: str) -> dict[int, Measures]:
    """Run its worker and its client once; return the measures by the number in flight."""
    port = httpx.URL(url).port
    broker = _pid_listening(port) if port else None
    with (
        running(contender, "worker", url, _LOAD) as worker,
        running(contender, "client", url, _LOAD, ready="GO") as client,
    ):
        found: dict[int, Measures] = {}
        pids = [client.pid, worker.pid, *([broker] if broker else [])]
        before = _cpu_ms(pids)
        for line in client.stdout or ():
            if line.strip() == "GO":
                before = _cpu_ms(pids)
            elif line.startswith("{"):
                told = json.loads(line)
                used = (_cpu_ms(pids) - before) / told["calls"]
                found[told["in_flight"]] = {
                    "rate": told["rate"],
                    "p50": told["p50"],
                    "p99": told["p99"],
                    "cpu": used,
                }
            if len(found) == len(_IN_FLIGHT):
                return found
    raise FailedError("its client ended early")


def _cpu_ms(pids: Sequence[int]) -> float:
    """Processor time that the processes have used so far, with that of their threads."""
    tick = 1000 / os.sysconf("SC_CLK_TCK")
    used = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += (int(fields[11]) + int(fields[12])) * tick
    return used


def _pid_listening(port: int) -> int | None:
    """The process that listens on a TCP port of this machine, if it can be seen."""
    sockets = {
        f"socket:[{fields[9]}]"
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if (fields := line.split())[3] == "0A" and int(fields[1].partition(":")[2], 16) == port
    }
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(each) in sockets for each in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:  # gone, or not ours
            continue
    return None


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
