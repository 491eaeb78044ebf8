"""Postbus with the queues of calls that BENCH_QUEUES names, for `python -m bench.call_queues`."""

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from shared.bus.amqp import method_queues
from shared.bus.amqp.declarations import Queue
from shared.bus.amqp.method_queues import MethodQueues
from shared.bus.amqp.topology import method_queue

__all__ = ["QUEUES", "use"]

_Make = Callable[[str, str, str], Queue]
_PROCESS: Final = secrets.token_hex(4)


def _durable(service: str, name: str, route: str) -> Queue:
    return replace(method_queue(service, name, route), transient=False)


def _quorum(service: str, name: str, route: str) -> Queue:
    arguments: Mapping[str, str | int] = {"x-queue-type": "quorum", "x-expires": 1000}
    own = method_queue(service, name, route)
    return replace(own, transient=False, auto_delete=False, arguments=arguments)


def _exclusive(service: str, name: str, route: str) -> Queue:
    own = method_queue(service, name, route)
    return replace(own, transient=False, exclusive=True, arguments={})


QUEUES: Final[Mapping[str, _Make]] = {
    "transient": method_queue,
    "durable": _durable,
    "quorum": _quorum,
    "exclusive": _exclusive,
}
"""`exclusive`: a queue for each process and method; a second process would get copies of calls."""


def use(name: str) -> None:
    """Let the servers of this process declare the queues `name`."""
    method_queues.method_queue = QUEUES[name]  # type: ignore[attr-defined]
    if name == "exclusive":
        made = MethodQueues.declarations

        def own_names(queues: MethodQueues) -> list[Queue]:
            for route, queue in queues.names.items():
                if not queue.endswith(_PROCESS):
                    queues.names[route] = f"{queue}.{_PROCESS}"
            return made(queues)

        MethodQueues.declarations = own_names  # type: ignore[method-assign]


if __name__ == "__main__":
    import loop
    import postbus_rpc

    use(os.environ["BENCH_QUEUES"])
    loop.run(postbus_rpc.bytes_worker, postbus_rpc.bytes_client)
