"""The contenders of `just bench http`: how to install, start and load each."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from bench.rpc.contenders import FailedError
from postbus.posts.v1 import CreatePostRequest
from postbus.registry import METHODS
from shared.wire import encode
from tests.system import WITHOUT_RATES, free_port
from tests.tokens import TokenMaker
from tools.node import node_environment, npm
from tools.paths import DEV
from tools.servers import ServersUnavailableError, packages
from tools.uv import uv

__all__ = ["CONNECTIONS", "POST", "TOKEN", "Contender", "installed", "load", "running"]

CONNECTIONS: Final = (1, 64, 256)
_HERE: Final = Path(__file__).parent / "peers"
_SCRATCH: Final = DEV / "bench" / "http"
_PYTHON_PACKAGES: Final = (
    "aio-pika==10.2.1",
    "fastapi==0.165.0",
    "faststream[rabbit]==0.7.8",
    "httptools==0.9.0",
    "uvicorn==0.54.0",
    "uvloop==0.23.0",
)
_NODE_PACKAGES: Final = (
    "@nestjs/common@12.5.1",
    "@nestjs/core@12.5.1",
    "@nestjs/microservices@12.1.1",
    "@nestjs/platform-express@12.5.1",
    "@nestjs/platform-fastify@12.5.0",
    "amqp-connection-manager@5.0.0",
    "amqplib@2.3.1",
    "reflect-metadata",
    "rxjs",
)
_KEYS: Final = TokenMaker("bench")
TOKEN: Final = _KEYS.token("018f3b6e-7b1a-7c44-9d0e-5f2a1b3c4d5e", lifetime=timedelta(hours=6))
POST: Final = {
    "title": "Notes on the Analytical Engine",
    "summary": "ada.lovelace 2024-05-01T12:34:56.789Z",
    "body": "The Analytical Engine has no pretensions whatever to originate anything. It can do"
    " whatever we know how to order it to perform. It can follow analysis; but it has no power of"
    " anticipating any truths!!",
}
"""The request of our contract; it has as many bytes as payload.json of the rivals."""
_RATES: Final = WITHOUT_RATES | {
    "POSTBUS_RATE_USER": "100000000/minute",
    "POSTBUS_RATE_USER_CHANGES": "100000000/minute",
    "POSTBUS_SOCKET_FRAMES_PER_CLIENT": "1000000",
}
"""Rate limits are counted as in production, but wrk does not reach them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A gateway with its worker, if it has one."""

    name: str
    gateway: Sequence[str]
    worker: Sequence[str] = ()
    path: str = "/posts"
    content_type: str = "application/json"
    payload: bytes = (_HERE / "payload.json").read_bytes()
    install: Callable[[], None] = lambda: None
    environment: Mapping[str, str] = field(default_factory=dict)


def _contenders() -> list[Contender]:
    python = str(_SCRATCH / "python/bin/python")
    our_environment = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "POSTBUS_VERIFICATION_KEYS": _KEYS.key_set,
        **_RATES,
    }
    bare = str(_HERE / "bare.py")

    def fastapi(name: str, app: str, worker: Sequence[str] = ()) -> Contender:
        return Contender(
            name=name,
            gateway=[python, str(_HERE / "fastapi_app.py"), app],
            worker=worker,
            install=_install_python,
        )

    def nest(name: str, adapter: str) -> Contender:
        program = str(_SCRATCH / "node/nest.mjs")
        return Contender(
            name=name,
            gateway=["node", program, adapter],
            worker=["node", program, "worker"],
            install=_install_node,
        )

    def ours(name: str, path: str, content_type: str, payload: bytes) -> Contender:
        return Contender(
            name=name,
            gateway=[sys.executable, str(_HERE / "postbus_gateway.py")],
            worker=[sys.executable, str(_HERE / "postbus_worker.py")],
            path=path,
            content_type=content_type,
            payload=payload,
            environment=our_environment,
        )

    document, binary = json.dumps(POST).encode(), encode(CreatePostRequest().from_dict(POST))
    connect = METHODS["postbus.posts.v1.PostsService.CreatePost"].route
    return [
        ours("ours", "/v1/posts", "application/json", document),
        ours("ours over Connect, JSON", connect, "application/json", document),
        ours("ours over Connect, binary", connect, "application/proto", binary),
        nest("NestJS with Fastify", "fastify"),
        nest("NestJS with Express", "express"),
        fastapi("FastAPI alone", "alone"),
        Contender(
            name="bare ASGI, our data plane",
            gateway=[sys.executable, bare, "gateway"],
            worker=[sys.executable, bare, "worker"],
            environment=our_environment,
        ),
        fastapi(
            "FastAPI with FastStream", "faststream", [python, str(_HERE / "faststream_worker.py")]
        ),
    ]


def installed() -> Iterator[Contender]:
    """Yield the contenders that can run on this machine; print why each other one cannot."""
    _SCRATCH.mkdir(parents=True, exist_ok=True)
    if not shutil.which("wrk"):
        packages.provide(["wrk"])
    for contender in _contenders():
        try:
            contender.install()
        except (OSError, subprocess.CalledProcessError, ServersUnavailableError) as error:
            print(f"bench: http: without {contender.name}: {error}", flush=True)
        else:
            yield contender


def _install_python() -> None:
    environment = _SCRATCH / "python"
    done = environment / ".installed"
    if done.exists() and done.read_text() == " ".join(_PYTHON_PACKAGES):
        return
    print(f"bench: http: installing {', '.join(_PYTHON_PACKAGES)}", flush=True)
    subprocess.run(
        [uv(), "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)],
        check=True,
    )
    target = ["--python", str(environment / "bin/python")]
    subprocess.run([uv(), "pip", "install", "--quiet", *target, *_PYTHON_PACKAGES], check=True)
    done.write_text(" ".join(_PYTHON_PACKAGES))


def _install_node() -> None:
    folder = _SCRATCH / "node"
    if not (folder / "node_modules").exists():
        print(f"bench: http: installing {', '.join(_NODE_PACKAGES)}", flush=True)
        folder.mkdir(exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        npm("install", *_NODE_PACKAGES, cwd=folder)
    shutil.copy(_HERE / "nest.mjs", folder)  # Node looks for packages beside the program


@contextmanager
def running(contender: Contender, url: str) -> Iterator[tuple[int, int | None]]:
    """Start the worker, then the gateway; yield their process ids; end both."""
    port = free_port()
    environment = {
        **node_environment(),
        "PYTHONWARNINGS": "ignore",
        "BENCH_URL": url,
        "BENCH_PORT": str(port),
        "POSTBUS_AMQP_URL": url,
        "POSTBUS_PORT": str(port),
        **contender.environment,
    }
    os.environ["BENCH_PORT"] = str(port)
    with ExitStack() as stack:
        worker = None
        if contender.worker:
            worker = stack.enter_context(_process(contender.worker, environment)).pid
        gateway = stack.enter_context(_process(contender.gateway, environment)).pid
        yield gateway, worker


@contextmanager
def _process(
    command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    with (_SCRATCH / "log").open("a") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        if "READY\n" not in (process.stdout or ()):  # reads until the line is printed
            raise FailedError(f"{command[-1]} ended early; see {_SCRATCH / 'log'}")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def load(contender: Contender, connections: int, seconds: int) -> dict[str, float]:
    """Run wrk; return `requests`, `rate`, `p50` and `p99`. FailedError if a response is not 2xx."""
    url = f"http://127.0.0.1:{os.environ['BENCH_PORT']}{contender.path}"
    environment = os.environ | {
        "BENCH_PAYLOAD": os.fsdecode(contender.payload),
        "BENCH_CONTENT_TYPE": contender.content_type,
        "BENCH_TOKEN": TOKEN,
        "LD_LIBRARY_PATH": packages.library_path(),
    }
    wrk = shutil.which("wrk") or str(packages.UNPACKED / "usr/bin/wrk")
    finished = subprocess.run(
        [wrk, "-t1", f"-c{connections}", f"-d{seconds}", "-s", str(_HERE / "post.lua"), url],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"RESULT (\{.*\})", finished.stdout)
    if found is None:
        raise FailedError(f"wrk: {finished.stderr.strip()}")
    figures: dict[str, float] = json.loads(found[1])
    if figures.pop("errors") or not figures["requests"]:
        raise FailedError(f"{contender.path}: not every response was 2xx")
    return figures
