"""Measure kinds of queues for calls: their cost, and the time without calls if a node is lost.

python -m bench.call_queues cost [NODES]: calls of one client to one worker, at different nodes
python -m bench.call_queues loss: the node of the queues is stopped and killed, of three nodes

The kinds are those of bench/rpc/peers/call_queues.py. The nodes are started for this program.
docs/operations.md has the results of `loss`.
"""

import asyncio
import json
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Final

from pydantic import SecretStr

from bench.process import cpu_seconds
from bench.rpc.contenders import Contender, Load, installed, running
from bench.rpc.peers.call_queues import QUEUES, use
from shared.bus import Call
from shared.bus.amqp import connect
from shared.bus.amqp.amqp_bus import AmqpBus
from shared.bus.reply import payload_reply
from shared.errors import ServiceError
from tools.accounts.rights import OPERATOR
from tools.accounts.set_up import set_up_broker_accounts
from tools.paths import DEV, SECRETS
from tools.secrets import Secrets
from tools.servers.addresses import service_url
from tools.servers.processes import stop_all, wait_until
from tools.servers.rabbitmq import RabbitMQ
from tools.servers.rabbitmq_node import Node

_IN_FLIGHT: Final = (1, 64)
_LOAD: Final = Load(in_flight=_IN_FLIGHT, seconds=2.0)
_ROUNDS: Final = 5
_FOLDER: Final = DEV / "bench" / "rabbitmq"
_ROUTE: Final = "postbus.bench.v1.Call"
_DOWN_SECONDS: Final = 10.0
_GOOD_SECONDS: Final = 2.0


@contextmanager
def _broker(nodes: int) -> Iterator[RabbitMQ]:
    broker = RabbitMQ("bench", nodes=nodes, folder=_FOLDER)
    try:
        broker.launch()
        if not broker.wait_ready(60):
            sys.exit("RabbitMQ was not ready in 60 s")
        secrets = Secrets.load_or_create(SECRETS)
        set_up_broker_accounts(broker.management_url, "/", secrets.accounts)
        yield broker
    finally:
        stop_all(broker.daemons, grace=2)


def _cost(nodes: int) -> None:
    """Print calls per second, latency and processor time of each kind, in turn."""
    [ours] = installed("ours")
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with _broker(nodes) as broker:
        for _ in range(_ROUNDS):
            for name in QUEUES:
                for each in _measure(broker, name, ours):
                    found.setdefault((name, round(each["in_flight"])), []).append(each)
    print("| queues | in flight | calls/s | p50 (ms) | p99 (ms) | CPU (ms/call) |")
    for (name, in_flight), rounds in sorted(found.items(), key=lambda item: item[0][1]):
        rate, p50, p99, cpu = (
            statistics.median(each[key] for each in rounds) for key in ("rate", "p50", "p99", "cpu")
        )
        print(f"| {name} | {in_flight} | {rate:.0f} | {p50:.2f} | {p99:.2f} | {cpu:.3f} |")


def _measure(broker: RabbitMQ, name: str, ours: Contender) -> Iterator[dict[str, float]]:
    program = ours.command[-1].replace("postbus_rpc", "call_queues")
    contender = Contender(
        name=name,
        command=[*ours.command[:-1], program],
        environment={**ours.environment, "BENCH_QUEUES": name},
    )
    with (
        running(contender, "worker", _url(broker.nodes[-1]), _LOAD) as worker,
        running(contender, "client", _url(broker.nodes[0]), _LOAD, ready="GO") as client,
    ):
        pids = [client.pid, worker.pid, *(pid for each in broker.daemons if (pid := each.pid()))]
        before = cpu_seconds(pids)
        measured = 0
        for line in client.stdout or ():
            if line.strip() == "GO":
                before = cpu_seconds(pids)
            elif line.startswith("{"):
                told = json.loads(line)
                yield told | {"cpu": 1000 * (cpu_seconds(pids) - before) / told["calls"]}
                measured += 1
            if measured == len(_IN_FLIGHT):
                return


def _url(*nodes: Node) -> str:
    hosts = ",".join(f"127.0.0.1:{node.ports['amqp']}" for node in nodes)
    return service_url(f"amqp://{hosts}/", "rabbitmq", OPERATOR, Secrets.load_or_create(SECRETS))


async def _loss(name: str, number: signal.Signals) -> None:
    """Print how long no call was served after the end of the node that has the queue."""
    use(name)
    with _broker(3) as broker:
        async with AsyncExitStack() as stack:
            for service in ("bench", "bench", "gateway"):
                bus = await stack.enter_async_context(
                    connect(SecretStr(_url(*broker.nodes)), service)
                )
                await bus.wait_ready()
                if service == "bench":
                    await bus.serve("bench", [_ROUTE], _answer)
            node = _node_of_queue(broker)
            node.daemon.send(number)
            began = time.monotonic()
            down = await _served_after(bus, began, began + _DOWN_SECONDS)
            wait_until(lambda: node.daemon.pid() is None, seconds=30)
            began = time.monotonic()
            broker.start([node])
            back = await _served_after(bus, began, began + 30) if down is None else 0.0
            print(f"| {name} | {number.name} | {_text(down)} | {_text(back)} |", flush=True)


async def _answer(_route: str, _body: bytes, _service: str) -> bytes:
    return payload_reply(b"x")


def _node_of_queue(broker: RabbitMQ) -> Node:
    queues = broker.nodes[0].get("queues")
    [name] = {each["node"] for each in queues if _ROUTE in each["name"]}
    return next(node for node in broker.nodes if node.name == name)


async def _served_after(bus: AmqpBus, began: float, end: float) -> float | None:
    """Return the seconds until the last failure before calls were served without one; or None."""
    failed = good = began
    while time.monotonic() < end:
        try:
            await bus.call(_ROUTE, Call.new(b"", budget=0.5))
            good = time.monotonic()
        except ServiceError:
            failed = time.monotonic()
        if good > failed + _GOOD_SECONDS:
            return failed - began
        await asyncio.sleep(0.02)
    return None


def _text(seconds: float | None) -> str:
    return "not" if seconds is None else f"{seconds:.1f} s"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["loss", *names]:
            for kind in names or list(QUEUES):
                for end in (signal.SIGTERM, signal.SIGKILL):
                    asyncio.run(_loss(kind, end))
        case ["cost", *nodes]:
            _cost(int(nodes[0]) if nodes else 1)
        case _:
            sys.exit(__doc__)
