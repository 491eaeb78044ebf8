"""Ended sessions while the broker, or its stream of revocations, is unavailable."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aio_pika
import httpx
import pytest

from gateway.app import build_app
from postbus.bus.v1 import Event
from postbus.registry import METHODS, Access
from postbus.users.v1 import SessionsRevoked
from shared.access_tokens import TokenVerifier
from shared.bus import Call
from shared.bus.amqp import AmqpBus
from shared.bus.amqp.broker_session import BrokerSession
from shared.bus.amqp.stream_reader import StreamReader
from shared.bus.message_bus import Failure
from shared.errors import Code, ServiceError
from shared.runtime.session_verifier import SessionVerifier
from shared.runtime.worker import Application, serve
from shared.wire import decode, encode
from tests.buses import opened_bus
from tests.conftest import new_vhost
from tests.idle import complete
from tests.proxy import Proxy
from tests.tokens import TokenMaker

Unique = Callable[[str], str]
STREAM = "users.revocations"
REVOKED = "postbus.users.v1.SessionsRevoked"
ID = "018f3f6e-0000-7000-8000-000000000001"
PUBLIC = "postbus.posts.v1.PostsService.ListPosts"
OF_POSTS = [
    method
    for method in METHODS.values()
    if method.worker == "posts" and method.access is Access.USER and not method.streams
]


@complete
class Posts:
    """Handlers for every method of `posts`."""


@pytest.fixture
async def own_vhost(unique: Unique) -> AsyncIterator[str]:
    """Return a virtual host for a test that breaks its stream."""
    async with new_vhost(unique("test_")) as url:
        yield url


@asynccontextmanager
async def opened(url: str, service: str = "users") -> AsyncIterator[AmqpBus]:
    async with opened_bus(url, service) as bus:
        yield bus


def a_call(token: str = "", payload: bytes = b"") -> Call:
    return Call.new(payload, budget=5, access_token=token)


async def refusal(bus: AmqpBus, route: str, token: str) -> tuple[Code, str, float | None]:
    with pytest.raises(ServiceError) as raised:
        await bus.call(route, a_call(token))
    return raised.value.code, raised.value.reason, raised.value.retry_after


def refused(sessions: SessionVerifier, token: str) -> str:
    """Return the reason for which a token is refused; empty if it is accepted."""
    try:
        sessions.verify(token)
    except ServiceError as error:
        return error.reason
    return ""


async def until(condition: Callable[[], bool], always: Callable[[], bool] = lambda: True) -> None:
    """Wait until a condition holds; check another one in every step."""
    async with asyncio.timeout(15):
        while not condition():
            assert always()
            await asyncio.sleep(0.01)


async def until_sessions_ready(client: httpx.AsyncClient, ready: bool) -> None:
    """Wait until /readyz shows gateway and worker with known sessions."""
    async with asyncio.timeout(15):
        while True:
            parts = (await client.get("/readyz")).json()["parts"]
            if {parts.get("gateway.sessions"), parts.get("posts.sessions")} == {ready}:
                return


def revocation(session_id: str) -> Event:
    data = encode(SessionsRevoked(user_id=ID, session_ids=[session_id]))
    return Event(id=session_id, type=REVOKED, data=data)


async def delete_queue(url: str, name: str) -> None:
    async with await aio_pika.connect(url) as connection:
        await (await connection.channel()).queue_delete(name)


async def test_no_token_is_accepted_until_the_stream_has_been_read(
    own_vhost: str, verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    streams = ("posts.revocations", "gateway.revocations")
    async with await aio_pika.connect(own_vhost) as connection:  # other queues under their names
        channel = await connection.channel()
        for stream in streams:
            await channel.declare_queue(stream, durable=True)
    token = tokens.token(ID)
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        opened(own_vhost, "users"),
        opened(own_vhost, "posts") as bus,
        opened(own_vhost, "gateway") as gateway,
    ):
        application = Application(handlers=[Posts()], probes={})
        app = build_app(gateway, verifier, max_body_bytes=10_000)
        transport = httpx.ASGITransport(app)
        async with (
            serve("posts", application, bus, verifier),
            app.running(),
            httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
        ):
            for method in OF_POSTS:
                rule = method.http[0]
                path = rule.path.replace("{id}", ID).replace("{post_id}", ID)
                body: dict[str, str] | None = {} if rule.body else None
                answer = await client.request(rule.verb, path, json=body, headers=headers)
                assert answer.status_code == 503, method.name
                assert answer.json()["reason"] == "SESSIONS_UNKNOWN"
                assert answer.headers["Retry-After"] == "1"
                on_bus = await refusal(bus, method.name, token)
                assert on_bus == (Code.UNAVAILABLE, "SESSIONS_UNKNOWN", 1), method.name
            assert (await client.get("/v1/posts")).status_code == 200
            await bus.call(PUBLIC, a_call())
            await until_sessions_ready(client, False)

            for stream in streams:
                await delete_queue(own_vhost, stream)

            await until_sessions_ready(client, True)
            assert (await client.get("/v1/posts", headers=headers)).status_code == 200
            await bus.call(PUBLIC, a_call(token))


async def test_verifier_that_has_not_run_accepts_no_token(
    vhost: str, verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    async with opened(vhost) as bus:
        sessions = SessionVerifier(bus, verifier)

        with pytest.raises(ServiceError, match="SESSIONS_UNKNOWN"):
            sessions.verify(tokens.token(ID))
        with pytest.raises(ServiceError, match="SESSIONS_UNKNOWN"):
            sessions.verify(tokens.token(ID), ended=True)
        with pytest.raises(ServiceError, match="TOKEN_INVALID"):
            sessions.verify("nonsense")


async def test_loss_of_the_stream_keeps_the_connection_and_the_known_revocations(
    own_vhost: str, verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    async with opened(own_vhost) as bus:
        sessions = SessionVerifier(bus, verifier)
        await sessions.run()
        await bus.publish(revocation("gone"))
        token = tokens.token(ID, sid="gone")
        await until(lambda: refused(sessions, token) == "SESSION_REVOKED")

        await delete_queue(own_vhost, STREAM)
        await until(lambda: not sessions.ready, always=lambda: bus.ready)
        assert refused(sessions, token) == "SESSIONS_UNKNOWN"
        await until(lambda: sessions.ready, always=lambda: bus.ready)

        assert refused(sessions, token) == "SESSION_REVOKED"


async def test_revocations_of_a_break_are_known_before_the_first_call_after_it(
    own_vhost: str, verifier: TokenVerifier, tokens: TokenMaker
) -> None:
    before, meanwhile = tokens.token(ID, sid="before"), tokens.token(ID, sid="meanwhile")
    async with (
        Proxy.open(own_vhost) as proxy,
        opened(own_vhost) as other,
        opened(proxy.url) as bus,
    ):
        sessions = SessionVerifier(bus, verifier)
        await sessions.run()
        await other.publish(revocation("before"))
        await until(lambda: refused(sessions, before) == "SESSION_REVOKED")

        await proxy.stop()
        await until(lambda: not bus.ready)
        await other.publish(revocation("meanwhile"))
        assert refused(sessions, before) == "SESSION_REVOKED"
        assert refused(sessions, meanwhile) == ""
        await proxy.start()
        async with asyncio.timeout(10):
            while not bus.ready:  # noqa: ASYNC110  # at the first moment
                await asyncio.sleep(0)

        assert refused(sessions, meanwhile) == "SESSION_REVOKED"
        assert refused(sessions, before) == "SESSION_REVOKED"


async def test_event_that_fails_in_its_handler_does_not_hide_the_next(
    vhost: str, unique: Unique
) -> None:
    event, stream = unique("postbus.users.v1.Event"), unique("stream.")
    heard: list[str] = []

    async def handler(body: bytes) -> Failure | None:
        heard.append(decode(Event, body).id)
        if heard[-1] == "bad":
            raise RuntimeError("unforeseen")
        return None

    async with opened(vhost) as bus:
        subscription = await bus.read_stream(stream, [event], handler, seconds=60)
        await bus.publish(Event(id="bad", type=event))
        await bus.publish(Event(id="good", type=event))
        await until(lambda: heard == ["bad", "good"])
        assert subscription.complete
        await subscription.cancel()


async def test_replay_that_takes_too_long_restarts(vhost: str, unique: Unique) -> None:
    event = unique("postbus.users.v1.Event")
    stream = unique("stream.")
    heard: list[bytes] = []

    async def slow_at_first(body: bytes) -> Failure | None:
        heard.append(body)
        if len(heard) == 1:
            await asyncio.Event().wait()
        return None

    async with opened(vhost) as bus, BrokerSession.open(vhost, "users") as session:
        await (await bus.read_stream(stream, [event], slow_at_first, seconds=60)).cancel()
        await bus.publish(Event(id="1", type=event))
        assert StreamReader(stream, [event], slow_at_first, seconds=60)._replay_seconds == 60
        reader = StreamReader(stream, [event], slow_at_first, seconds=60, replay_seconds=0.5)

        await reader.start(session)
        assert not reader.complete
        await until(lambda: reader.complete)

        assert len(heard) == 2
        await reader.stop()


async def test_stream_that_was_read_in_time_is_read_on_without_end(
    vhost: str, unique: Unique
) -> None:
    event = unique("postbus.users.v1.Event")
    stream = unique("stream.")
    heard: list[str] = []

    async def handler(body: bytes) -> Failure | None:
        heard.append(decode(Event, body).id)
        return None

    async with opened(vhost) as bus, BrokerSession.open(vhost, "users") as session:
        reader = StreamReader(stream, [event], handler, seconds=60, replay_seconds=0.3)
        await reader.start(session)
        await until(lambda: reader.complete)
        reading_since = time.monotonic()

        sent: list[str] = []
        while time.monotonic() < reading_since + 0.6:
            sent.append(str(len(sent)))
            await bus.publish(Event(id=sent[-1], type=event))
            await until(lambda: heard == sent, always=lambda: reader.complete)

        await reader.stop()
