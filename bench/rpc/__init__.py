"""`just bench rpc`: calls through the broker, ours beside the rivals' on the same machine.

One client process, one worker process, payloads of about 300 bytes; the contenders take turns, and
each measure is the median of all rounds. Ours counts twice: whole (stub, envelope, validation at
the worker, dispatch, handler, acknowledged after the reply), and the data plane alone, bytes in and
bytes out.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from bench.report import Result
from tools.infrastructure import Addresses, InfrastructureError, packages, servers
from tools.node import node_environment, npm
from tools.paths import DEV
from tools.uv import uv

__all__ = ["run"]

_HERE: Final = Path(__file__).parent / "peers"
_SCRATCH: Final = DEV / "bench" / "rpc"
_IN_FLIGHT: Final = (1, 16, 64, 256)
_QUICK: Final = bool(os.environ.get("BENCH_QUICK"))
_ROUNDS: Final = 1 if _QUICK else 3
_SECONDS: Final = 1.0 if _QUICK else 3.0
_PYTHON_PACKAGES: Final = ("aio-pika==10.2.1", "faststream[rabbit]==0.7.8", "uvloop==0.23.0")
_NAMEKO_PACKAGES: Final = ("nameko==2.14.1", "setuptools<80", "uvloop==0.23.0")
_NODE_PACKAGES: Final = (
    "@nestjs/common@12.5.1",
    "@nestjs/core@12.5.1",
    "@nestjs/microservices@12.1.1",
    "amqp-connection-manager@5.0.0",
    "amqplib@2.3.1",
    "reflect-metadata",
    "rxjs",
)

Measures = dict[str, float]
"""Of one number in flight: `rate` in calls/s, `p50` and `p99` in ms, `cpu` in ms for each call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contender:
    name: str
    command: Sequence[str]
    arguments: Sequence[str] = ()
    install: Callable[[], None] = lambda: None
    environment: Mapping[str, str] = field(default_factory=dict)


def run() -> list[Result]:
    """Install the rivals, let all take turns, and compare."""
    _SCRATCH.mkdir(parents=True, exist_ok=True)
    contenders = list(_installed())
    measured: dict[str, list[dict[int, Measures]]] = {each.name: [] for each in contenders}
    with servers("bench") as addresses, _vhost(addresses) as url:
        for number in range(_ROUNDS):
            for contender in contenders:
                print(f"bench: rpc: round {number + 1} of {_ROUNDS}: {contender.name}", flush=True)
                try:
                    measured[contender.name].append(_measure(contender, url))
                except _FailedError as error:
                    print(f"bench: rpc: {contender.name} failed: {error}", flush=True)
    return list(_results({name: _median(rounds) for name, rounds in measured.items() if rounds}))


def _contenders() -> list[_Contender]:
    python, nameko = (str(_SCRATCH / name / "bin/python") for name in ("python", "nameko"))
    ours = [sys.executable, str(_HERE / "postbus_rpc.py")]
    our_path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    return [
        _Contender(name="ours", command=ours, environment=our_path),
        _Contender(
            name="NestJS", command=["node", str(_SCRATCH / "node/nest.mjs")], install=_install_node
        ),
        _Contender(
            name="FastStream",
            command=[python, str(_HERE / "faststream_rpc.py")],
            install=lambda: _install_python("python", _PYTHON_PACKAGES),
        ),
        _Contender(
            name="aio-pika by hand",
            command=[python, str(_HERE / "aiopika_rpc.py")],
            install=lambda: _install_python("python", _PYTHON_PACKAGES),
        ),
        _Contender(
            name="Nameko",
            command=[nameko, str(_HERE / "nameko_rpc.py")],
            install=lambda: _install_python("nameko", _NAMEKO_PACKAGES, "3.11"),
        ),
        _Contender(name="ours, bytes", command=ours, arguments=["bytes"], environment=our_path),
        _Contender(
            name="librabbitmq in C",
            command=[str(_SCRATCH / "librabbitmq")],
            install=_install_c,
            environment={"LD_LIBRARY_PATH": packages.library_path()},
        ),
        _Contender(
            name="amqplib in Node",
            command=["node", str(_SCRATCH / "node/amqplib.mjs")],
            install=_install_node,
        ),
    ]


def _installed() -> Iterator[_Contender]:
    """Those that can run here; the others are named."""
    for contender in _contenders():
        try:
            contender.install()
        except (OSError, subprocess.CalledProcessError, InfrastructureError) as error:
            print(f"bench: rpc: without {contender.name}: {error}", flush=True)
        else:
            yield contender


def _install_python(name: str, wanted: Sequence[str], version: str = "") -> None:
    environment = _SCRATCH / name
    done = environment / ".installed"
    if done.exists() and done.read_text() == " ".join(wanted):
        return
    print(f"bench: rpc: installing {', '.join(wanted)}", flush=True)
    python = ["--python", version or sys.executable]
    subprocess.run([uv(), "venv", "--quiet", "--clear", *python, str(environment)], check=True)
    target = ["--python", str(environment / "bin/python")]
    subprocess.run([uv(), "pip", "install", "--quiet", *target, *wanted], check=True)
    done.write_text(" ".join(wanted))


def _install_node() -> None:
    folder = _SCRATCH / "node"
    if not (folder / "node_modules").exists():
        print(f"bench: rpc: installing {', '.join(_NODE_PACKAGES)}", flush=True)
        folder.mkdir(exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        npm("install", *_NODE_PACKAGES, cwd=folder)
    for program in _HERE.glob("*.mjs"):  # packages are looked for beside the program
        shutil.copy(program, folder)


def _install_c() -> None:
    program = _SCRATCH / "librabbitmq"
    packages.provide(["librabbitmq-dev"])
    root = packages.UNPACKED / "usr"
    libraries = [f"-L{each}" for each in packages.library_path().split(":")]
    source = [str(_HERE / "librabbitmq.c"), "-lrabbitmq", "-Wl,--allow-shlib-undefined"]
    command = ["cc", "-O2", f"-I{root / 'include'}", *libraries, "-o", str(program), *source]
    subprocess.run(command, check=True)


@contextmanager
def _vhost(addresses: Addresses) -> Iterator[str]:
    """A virtual host of our own, gone at the end with all that is in it."""
    broker = httpx.URL(addresses.amqp_url)
    with httpx.Client(base_url=addresses.amqp_management_url, trust_env=False) as management:
        management.put("/api/vhosts/bench").raise_for_status()
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        management.put(f"/api/permissions/bench/{broker.username}", json=everything)
        try:
            yield str(broker.copy_with(path="/bench"))
        finally:
            management.delete("/api/vhosts/bench")


class _FailedError(Exception):
    """A contender did not do what it should."""


def _measure(contender: _Contender, url: str) -> dict[int, Measures]:
    """Run its worker and its client once; return the measures by the number in flight."""
    environment = {
        **node_environment(),
        "PYTHONWARNINGS": "ignore",
        "BENCH_URL": url,
        "BENCH_PAYLOAD": str(_HERE / "payload.json"),
        "BENCH_IN_FLIGHT": ",".join(map(str, _IN_FLIGHT)),
        "BENCH_SECONDS": str(_SECONDS),
        **contender.environment,
    }
    port = httpx.URL(url).port
    broker = _pid_listening(port) if port else None
    with (
        _running(contender, "worker", environment) as worker,
        _running(contender, "client", environment, ready="GO") as client,
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
    raise _FailedError(f"its client ended early; see {_SCRATCH / 'log'}")


@contextmanager
def _running(
    contender: _Contender, role: str, environment: Mapping[str, str], ready: str = "READY"
) -> Iterator[subprocess.Popen[str]]:
    """Start a program, wait until it says `ready`, and end it in the end."""
    command = [*contender.command, role, *contender.arguments]
    with (_SCRATCH / "log").open("a") as log:
        process = subprocess.Popen(
            command, env=dict(environment), stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        for line in process.stdout or ():
            if line.strip() == ready:
                break
        else:
            raise _FailedError(f"its {role} did not start; see {_SCRATCH / 'log'}")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
