"""Nameko: `@rpc`, and ClusterRpcProxy with a window of `call_async`."""

import eventlet

eventlet.monkey_patch()

import sys  # noqa: E402
import time  # noqa: E402
from collections import deque  # noqa: E402

from loop import IN_FLIGHT, NEW_ID, POST, SECONDS, URL, WARM_UP, say, tell  # noqa: E402
from nameko.containers import ServiceContainer  # noqa: E402
from nameko.rpc import rpc  # noqa: E402
from nameko.standalone.rpc import ClusterRpcProxy  # noqa: E402

CONFIG = {"AMQP_URI": URL, "max_workers": 256}


class Echo:
    name = "bench_nameko"

    @rpc
    def echo(self, post):
        return dict(post, id=NEW_ID)


def worker():
    container = ServiceContainer(Echo, CONFIG)
    container.start()
    say("READY")
    container.wait()


def client():
    with ClusterRpcProxy(CONFIG) as proxy:
        echo = proxy[Echo.name].echo
        assert echo(POST)["id"] == NEW_ID
        for in_flight in IN_FLIGHT:
            measure(echo, in_flight)


def measure(echo, in_flight):
    latencies, window = [], deque()
    warm, began = time.perf_counter() + WARM_UP, None
    while began is None or time.perf_counter() - began < SECONDS:
        while len(window) < in_flight:
            window.append((time.perf_counter(), echo.call_async(POST)))
        sent, reply = window.popleft()
        reply.result()
        latencies.append(time.perf_counter() - sent)
        if began is None and time.perf_counter() >= warm:
            began = time.perf_counter()
            latencies.clear()
            say("GO")
    tell(in_flight, latencies, time.perf_counter() - began)
    for _, reply in window:
        reply.result()


{"worker": worker, "client": client}[sys.argv[1]]()
