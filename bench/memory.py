"""`just bench memory`: memory of a worker when idle and after many calls."""

import json
from pathlib import Path
from typing import Final

from bench.report import Result
from bench.rpc.contenders import QUICK, Contender, Load, installed, running, virtual_host
from tools.servers import servers

__all__ = ["run"]

_CALLS: Final = (10_000, 100_000) if QUICK else (100_000, 1_000_000)
_LOAD: Final = Load(in_flight=[64] * 10_000, seconds=2.0)
"""Upper limit in seconds."""


def run() -> list[Result]:
    """Measure ours beside NestJS."""
    with servers("bench") as addresses, virtual_host(addresses) as url:
        measured = {each.name: _measure(each, url) for each in installed("ours", "NestJS")}
    ours = measured.pop("ours")
    measures = ["idle worker", *(f"worker after {calls:,} calls" for calls in _CALLS)]
    return [
        Result(
            measure=f"memory: {measure}",
            unit="MiB",
            ours=ours[number],
            rivals={name: held[number] for name, held in measured.items()},
        )
        for number, measure in enumerate(measures)
    ]


def _measure(contender: Contender, url: str) -> list[float]:
    """Return the resident memory of the worker at first and after each number of calls."""
    print(f"bench: memory: {contender.name}", flush=True)
    with running(contender, "worker", url, _LOAD) as worker:
        held, calls = [_resident(worker.pid)], 0
        with running(contender, "client", url, _LOAD, ready="GO") as client:
            for line in client.stdout or ():
                calls += json.loads(line)["calls"] if line.startswith("{") else 0
                if len(held) <= len(_CALLS) and calls >= _CALLS[len(held) - 1]:
                    held.append(_resident(worker.pid))
                if len(held) > len(_CALLS):
                    break
    return held


def _resident(pid: int) -> float:
    """Return the resident memory in MiB."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024
