"""The contenders of `just bench rpc`: how to install and run each."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from shared.bus.amqp.broker_addresses import broker_addresses
from tools.accounts.rights import OPERATOR
from tools.accounts.set_up import set_up_broker_accounts
from tools.node import node_environment, npm
from tools.paths import DEV, SECRETS
from tools.secrets import Secrets
from tools.servers import Addresses, ServersUnavailableError, packages
from tools.servers.addresses import service_url
from tools.uv import uv

__all__ = ["QUICK", "Contender", "FailedError", "Load", "installed", "running", "virtual_host"]

_HERE: Final = Path(__file__).parent / "peers"
_SCRATCH: Final = DEV / "bench" / "rpc"
QUICK: Final = bool(os.environ.get("BENCH_QUICK"))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A worker and a client: `command` with `worker` or `client` and `arguments`."""

    name: str
    command: Sequence[str]
    arguments: Sequence[str] = ()
    install: Callable[[], None] = lambda: None
    environment: Mapping[str, str] = field(default_factory=dict)


def _contenders() -> list[Contender]:
    python, nameko = (str(_SCRATCH / name / "bin/python") for name in ("python", "nameko"))
    ours = [sys.executable, str(_HERE / "postbus_rpc.py")]
    our_path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    return [
        Contender(name="ours", command=ours, environment=our_path),
        Contender(
            name="NestJS", command=["node", str(_SCRATCH / "node/nest.mjs")], install=_install_node
        ),
        Contender(
            name="FastStream",
            command=[python, str(_HERE / "faststream_rpc.py")],
            install=lambda: _install_python("python", _PYTHON_PACKAGES),
        ),
        Contender(
            name="aio-pika by hand",
            command=[python, str(_HERE / "aiopika_rpc.py")],
            install=lambda: _install_python("python", _PYTHON_PACKAGES),
        ),
        Contender(
            name="Nameko",
            command=[nameko, str(_HERE / "nameko_rpc.py")],
            install=lambda: _install_python("nameko", _NAMEKO_PACKAGES, "3.11"),
        ),
        Contender(name="ours, bytes", command=ours, arguments=["bytes"], environment=our_path),
        Contender(
            name="librabbitmq in C",
            command=[str(_SCRATCH / "librabbitmq")],
            install=_install_c,
            environment={"LD_LIBRARY_PATH": packages.library_path()},
        ),
        Contender(
            name="amqplib in Node",
            command=["node", str(_SCRATCH / "node/amqplib.mjs")],
            install=_install_node,
        ),
    ]


def installed(*names: str) -> Iterator[Contender]:
    """Yield the contenders that can run here, or the named ones; print the reason for the rest."""
    _SCRATCH.mkdir(parents=True, exist_ok=True)
    for contender in _contenders():
        if names and contender.name not in names:
            continue
        try:
            contender.install()
        except (OSError, subprocess.CalledProcessError, ServersUnavailableError) as error:
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
    for program in _HERE.glob("*.mjs"):  # Node looks for packages beside the program
        shutil.copy(program, folder)


def _install_c() -> None:
    program = _SCRATCH / "librabbitmq"
    packages.provide(["librabbitmq-dev"])
    root = packages.UNPACKED / "usr"
    libraries = [f"-L{each}" for each in packages.library_folders()]
    source = [str(_HERE / "librabbitmq.c"), "-lrabbitmq", "-Wl,--allow-shlib-undefined"]
    command = ["cc", "-O2", f"-I{root / 'include'}", *libraries, "-o", str(program), *source]
    subprocess.run(command, check=True)


@contextmanager
def virtual_host(addresses: Addresses) -> Iterator[str]:
    """Create a virtual host with the services' accounts; delete it at the end.

    Yield its URL with the account of the operator, which may name any service as the sender.
    """
    broker = httpx.URL(str(broker_addresses(addresses.amqp_url)[0]))
    with httpx.Client(base_url=addresses.amqp_management_url, trust_env=False) as management:
        management.put("/api/vhosts/bench").raise_for_status()
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        management.put(f"/api/permissions/bench/{broker.username}", json=everything)
        secrets = Secrets.load_or_create(SECRETS)
        set_up_broker_accounts(addresses.amqp_management_url, "bench", secrets.accounts)
        try:
            url = str(broker.copy_with(path="/bench"))
            yield service_url(url, "rabbitmq", OPERATOR, secrets)
        finally:
            management.delete("/api/vhosts/bench")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A closed loop of calls: each number in flight is kept for some seconds."""

    in_flight: Sequence[int]
    seconds: float


class FailedError(Exception):
    """Raised if a contender does not start, or returns an error."""


@contextmanager
def running(
    contender: Contender,
    role: str,
    url: str,
    load: Load,
    *,
    ready: str = "READY",
) -> Iterator[subprocess.Popen[str]]:
    """Start a program, wait until it prints `ready`, and stop it at the end."""
    environment = {
        **node_environment(),
        "PYTHONWARNINGS": "ignore",
        "BENCH_URL": url,
        "BENCH_PAYLOAD": str(_HERE / "payload.json"),
        "BENCH_IN_FLIGHT": ",".join(map(str, load.in_flight)),
        "BENCH_SECONDS": str(load.seconds),
        **contender.environment,
    }
    command = [*contender.command, role, *contender.arguments]
    with (_SCRATCH / "log").open("a") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        if f"{ready}\n" not in (process.stdout or ()):  # reads until the line
            raise FailedError(f"its {role} ended early; see {_SCRATCH / 'log'}")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
