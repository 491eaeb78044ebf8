"""A worker that starts on a slow broker."""

from collections.abc import Callable

import pytest
import structlog.testing

from shared.access_tokens import TokenVerifier
from shared.bus import Dispatcher
from shared.bus.amqp import topology
from shared.bus.memory import MemoryBus
from shared.outbox.unit_of_work import without_store
from shared.runtime.session_verifier import SessionVerifier
from shared.runtime.worker import Health
from tests.buses import a_call, echo, opened_bus
from tests.shared.test_dispatch import Posts

Unique = Callable[[str], str]


async def test_queues_of_many_methods_do_not_expire_before_their_consumers_start(
    vhost: str, unique: Unique, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker deletes a queue that has no consumer: after a second, which is shortened here."""
    monkeypatch.setattr(topology, "_ORPHAN_EXPIRES_MS", 30)
    routes = [unique("postbus.test.v1.Route") for _ in range(150)]

    async with opened_bus(vhost) as bus:
        with structlog.testing.capture_logs() as lines:
            server = await bus.serve(unique("queue."), routes, echo)
        for route in (routes[0], routes[-1]):
            assert (await bus.call(route, a_call(b"here"))).payload == b"here"
        await server.cancel()

    assert [line["event"] for line in lines if line["event"] == "consumer.not_started"] == []


async def test_worker_is_ready_only_once_all_its_methods_have_routes(
    verifier: TokenVerifier,
) -> None:
    """The bindings are made in the order of the routes, that of the health check last."""
    sessions = SessionVerifier(MemoryBus(), verifier)
    handlers = [Posts(), Health({})]
    routes = Dispatcher("posts", handlers, sessions, without_store(MemoryBus().publish)).routes

    own = [place for place, route in enumerate(routes) if not route.startswith("postbus.bus.")]
    assert max(own) < routes.index("postbus.bus.v1.HealthService.Check.posts")
