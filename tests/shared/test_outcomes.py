"""Errors have the outcome NO_EFFECT only if the call cannot have had an effect."""

import ast
import asyncio
from collections.abc import Callable, Iterator
from typing import Final
from unittest.mock import patch

import aio_pika
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from postbus import reasons
from postbus.bus.v1 import Batch, Code, Error, Event, Outcome, Reply, Request
from postbus.posts.v1 import CreatePostRequest, PostsServiceStub
from postbus.registry import METHODS
from postbus_runtime.reasons import Reason
from shared.bus import Call, CallResult, ServiceChannel, call_method
from shared.bus.amqp import connect
from shared.bus.memory import MemoryBus
from shared.errors import ServiceError
from shared.outbox.inbox import Operation, stored_reply
from shared.outbox.unit_of_work import current_unit_of_work, without_store
from shared.wire import decode, encode
from tests.buses import opened_bus
from tests.messages import CALLS, reply_queue
from tests.proxy import Proxy
from tools.paths import ROOT, SERVICES

CREATE = METHODS["postbus.posts.v1.PostsService.CreatePost"]
LIKE = METHODS["postbus.posts.v1.PostsService.LikePost"]


@pytest.mark.parametrize("reply", [b"\xff", encode(Reply(payload=b"\xff"))])
async def test_malformed_reply_is_an_error_with_an_unknown_outcome(reply: bytes) -> None:
    async def malformed(_route: str, _body: bytes, _service: str) -> bytes:
        return reply

    bus = MemoryBus()
    await bus.serve("posts", [CREATE.name], malformed)

    with pytest.raises(ServiceError) as raised:
        await PostsServiceStub(ServiceChannel(bus)).create_post(CreatePostRequest(title="Hi"))

    assert (raised.value.code, raised.value.outcome) == (Code.INTERNAL, Outcome.UNKNOWN)


async def test_call_that_was_sent_before_the_connection_broke_has_an_unknown_outcome(
    vhost: str, unique: Callable[[str], str]
) -> None:
    """The retries are not sent, but the first call may have been executed."""
    served, route = asyncio.Event(), unique("postbus.test.v1.Route")

    async def never(_route: str, _body: bytes, _service: str) -> bytes:
        served.set()
        await asyncio.Event().wait()
        return b""

    async with (
        Proxy.open(vhost) as proxy,
        opened_bus(vhost) as server,
        opened_bus(proxy.url) as client,
    ):
        await server.serve(unique("queue."), [route], never)
        call = Call.new(b"", budget=5)
        calling = asyncio.create_task(call_method(client, LIKE, call, route))
        async with asyncio.timeout(5):
            await served.wait()
        await proxy.stop()

        with pytest.raises(ServiceError) as raised:
            await calling

    assert (raised.value.reason, raised.value.outcome) == ("NOT_CONNECTED", Outcome.UNKNOWN)


def test_operation_without_a_stored_reply_has_an_unknown_outcome() -> None:
    operation = Operation(key="key", fingerprint=b"same")

    with pytest.raises(ServiceError) as raised:
        stored_reply(operation, b"same", None)

    assert (raised.value.reason, raised.value.outcome) == ("ALREADY_DONE", Outcome.UNKNOWN)


class Trying(MemoryBus):
    """A bus that fails the tries of a call with the given reasons and outcomes, in turn."""

    def __init__(self, tries: list[tuple[str, int]]) -> None:
        super().__init__()
        self.made: list[tuple[str, int]] = []
        self._tries = tries

    async def call(self, _route: str, _call: Call) -> CallResult:
        reason, outcome = self._tries[len(self.made)]
        self.made.append((reason, outcome))
        raise ServiceError(Reason(reason, Code.UNAVAILABLE), "", outcome=outcome)


REPEATED: Final = ("CONNECTION_LOST", "NOT_CONNECTED", "WORKER_LOST", "OPERATION_RUNNING")
FINAL: Final = ("NO_ROUTE", "BROKER_BLOCKED", "DEADLINE_EXCEEDED", "POST_NOT_FOUND")
OUTCOMES: Final = (Outcome.UNSPECIFIED, Outcome.NO_EFFECT, Outcome.UNKNOWN)


@given(
    tries=st.lists(st.tuples(st.sampled_from(REPEATED), st.sampled_from(OUTCOMES)), max_size=8),
    last=st.tuples(st.sampled_from(FINAL), st.sampled_from(OUTCOMES)),
)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
async def test_call_has_no_effect_only_if_no_try_had_one(
    tries: list[tuple[str, int]], last: tuple[str, int]
) -> None:
    bus = Trying([*tries, last])

    with patch("shared.bus.client._RETRY_DELAY", 0.0), pytest.raises(ServiceError) as raised:
        await call_method(bus, LIKE, Call.new(b"", budget=5))

    no_effect = all(outcome == Outcome.NO_EFFECT for _, outcome in bus.made)
    assert (raised.value.outcome == Outcome.NO_EFFECT) == no_effect
    assert raised.value.reason == bus.made[-1][0]


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batch"])
@pytest.mark.parametrize("redelivered", [False, True], ids=["first", "again"])
async def test_error_of_a_call_that_was_delivered_before_has_an_unknown_outcome(
    vhost: str, unique: Callable[[str], str], redelivered: bool, batched: bool
) -> None:
    """The worker that had the call first may have executed it before it died."""
    route, queue = unique("postbus.test.v1.Route"), unique("queue.")
    refusal = Error(code=Code.NOT_FOUND, reason="GONE", outcome=Outcome.NO_EFFECT)  # type: ignore[arg-type]  # enum members are int to mypy

    async def answer(_route: str, body: bytes, _service: str) -> bytes:
        failing = decode(Request, body).payload == b"fail"
        return encode(Reply(error=refusal) if failing else Reply(payload=b"done"))

    async with (
        await aio_pika.connect(vhost) as connection,
        connect(SecretStr(vhost), "test") as worker,
    ):
        channel = await connection.channel()
        replies = await reply_queue(channel)
        first = await channel.declare_queue(
            f"{queue}.{route}", auto_delete=True, arguments={"x-expires": 1000}
        )
        for key in (route, f"{route}/batch"):
            await first.bind(CALLS, key)
        calls_exchange = await channel.get_exchange(CALLS)
        requests = [encode(Request(payload=each, budget_ms=9000)) for each in (b"fail", b"")]
        for number, request in enumerate(requests):
            body, key, id_ = request, route, str(number)
            if batched:
                body = encode(Batch(correlation_ids=[id_], messages=[request]))
                key, id_ = f"{route}/batch", ""
            message = aio_pika.Message(
                body, reply_to=replies.name, correlation_id=id_ or None, user_id="test"
            )
            await calls_exchange.publish(message, key)
        if redelivered:
            for delivery in [await first.get(), await first.get()]:
                await delivery.reject(requeue=True)
        await worker.wait_ready()
        server = await worker.serve(queue, [route], answer)
        found: dict[str, Reply] = {}
        async with asyncio.timeout(5), replies.iterator(no_ack=True) as messages:
            while len(found) < 2:
                received = await anext(messages)
                if received.correlation_id:
                    found[received.correlation_id] = decode(Reply, received.body)
                else:
                    batch = decode(Batch, received.body)
                    for id_, reply in zip(batch.correlation_ids, batch.messages, strict=True):
                        found[id_] = decode(Reply, reply)
        await server.cancel()

    expected = Outcome.UNKNOWN if redelivered else Outcome.NO_EFFECT
    assert (found["0"].error.reason, found["0"].error.outcome) == ("GONE", expected)
    assert found["1"] == Reply(payload=b"done")


async def test_event_that_cannot_be_published_after_the_handler_is_an_unknown_outcome() -> None:
    """A service without a database cannot undo the effects of its handler."""

    async def refuse(_event: Event) -> None:
        raise ServiceError(reasons.EVENT_REFUSED, "", outcome=Outcome.NO_EFFECT)

    async def execute() -> bytes:
        unit = current_unit_of_work()
        assert unit is not None
        unit.events.append(Event())
        return b""

    with pytest.raises(ServiceError) as raised:
        await without_store(refuse)(Operation(key="key"), execute)

    assert (raised.value.reason, raised.value.outcome) == ("EVENT_REFUSED", Outcome.UNKNOWN)


def test_no_streaming_method_has_side_effects() -> None:
    """A stream has no unit of work: an error could not undo what the handler has done."""
    changing = [method.name for method in METHODS.values() if method.has_side_effects]

    assert [name for name in changing if METHODS[name].streams] == []


BEFORE_SENDING: Final = "raised before the call is sent"
NOT_STARTED: Final = "the handler is not started; a redelivered call gets UNKNOWN"
ROLLED_BACK: Final = (
    "raised in the unit of work, which is rolled back; after its commit no error is raised"
)
NO_CALL: Final = "concerns an event, a subscription or a control message, not a call"
GIVEN: Final = "a default: the callers of the function are in this list, or state the outcome"

PROOFS: Final = {
    "bus/amqp/batches.py unpack": NOT_STARTED,
    "bus/amqp/call_execution.py CallExecution._end_cancelled": NOT_STARTED,
    "bus/amqp/call_execution.py _expired": NOT_STARTED,
    "bus/amqp/call_receiver.py CallReceiver._refuse": NOT_STARTED,
    "bus/amqp/call_sender.py CallSenders.open": BEFORE_SENDING,
    "bus/amqp/control_receiver.py _read": NO_CALL,
    "bus/amqp/event_publisher.py EventPublisher.publish_confirmed": NO_CALL,
    "bus/amqp/event_publisher.py _unrouted": NO_CALL,
    "bus/amqp/rpc_client.py RpcClient._budget": BEFORE_SENDING,
    "bus/call_errors.py broker_blocked": GIVEN,
    "bus/call_errors.py no_route": "returned by the broker, or raised before it is sent",
    "bus/call_errors.py not_connected": BEFORE_SENDING,
    "bus/call_errors.py unavailable": GIVEN,
    "bus/client.py _retry": "compares the outcomes of all tries",
    "bus/consumed_event.py ConsumedEvent.operation": NO_CALL,
    "bus/event_dispatch.py EventDispatcher._consume": NO_CALL,
    "bus/dispatch.py _not_served": NOT_STARTED,
    "bus/dispatch.py _too_large": NOT_STARTED,
    "bus/memory.py _replies": NOT_STARTED,
    "bus/memory.py _request": BEFORE_SENDING,
    "bus/request_verification.py _id_too_long": NOT_STARTED,
    "bus/request_verification.py _not_a_caller": NOT_STARTED,
    "bus/served_method.py encode_response": ROLLED_BACK,
    "context.py Context.__enter__": NOT_STARTED,
    "errors.py ServiceError.__init__": GIVEN,
    "errors.py database_busy": ROLLED_BACK,
    "errors.py invalid_field": ROLLED_BACK,
    "errors.py version_mismatch": ROLLED_BACK,
    "access_tokens.py TokenVerifier._verify": NOT_STARTED,
    "access_tokens.py session_revoked": NOT_STARTED,
    "access_tokens.py token_missing": NOT_STARTED,
    "outbox/inbox.py stored_reply": "another request had the key, and this one is not executed",
    "errors.py database_conflict": ROLLED_BACK,
    "outbox/mongo_errors.py _answer": ROLLED_BACK,
    "outbox/mongo_errors.py service_error": ROLLED_BACK,
    "outbox/postgres_errors.py _by_rule": ROLLED_BACK,
    "outbox/postgres_errors.py _translated": ROLLED_BACK,
    "outbox/postgres_errors.py _unavailable": ROLLED_BACK,
    "outbox/postgres_errors.py _unless_conflict": ROLLED_BACK,
    "protojson/text_violations.py unreadable": BEFORE_SENDING,
    "runtime/session_verifier.py _unknown": NOT_STARTED,
    "wire.py _malformed": NOT_STARTED,
    "wire.py invalid_fields": NOT_STARTED,
}
"""Every place of `shared` that makes an error with the outcome NO_EFFECT, with the proof."""

COMMITTED: Final = {
    "posts/authors/projection.py": "copies an author of `users`, which is no effect of the call",
    "posts/authors/resync.py": "copies an author of `users`, which is no effect of the call",
    "users/account_handlers.py": "reads",
    "users/account_repository.py": "replaces a hash of the same password",
    "users/log_in_handlers.py": "reads",
    "users/refresh_handlers.py": "no error follows the exchange; the end of a session is UNKNOWN",
    "users/throttle.py": "counts attempts, which is no effect of the call",
}
"""Every module that works outside the unit of work: a later error does not undo that."""


MAKERS: Final = {"ServiceError": 9, "unavailable": 3, "broker_blocked": 1}
"""Functions that make an error, with the number of their parameters up to the outcome."""


def claims(node: ast.AST, name: str = "") -> Iterator[str]:
    """Yield the function of each expression that makes an error with NO_EFFECT, or may do so."""
    for child in ast.iter_child_nodes(node):
        inner = name
        match child:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                inner = f"{name}.{child.name}".removeprefix(".")
            case ast.Attribute(attr="NO_EFFECT"):
                yield name
            case ast.Call(func=ast.Name(id=called)) if called in MAKERS:
                given = [word.arg for word in child.keywords]
                if "outcome" not in given and len(child.args) < MAKERS[called]:
                    yield name
        yield from claims(child, inner)


def test_every_place_that_claims_no_effect_has_a_proof() -> None:
    """A new place needs an entry with its proof, or the outcome UNKNOWN."""
    shared = ROOT / "shared" / "src" / "shared"
    found = {
        f"{file.relative_to(shared)} {function}"
        for file in shared.rglob("*.py")
        for function in claims(ast.parse(file.read_text()))
    }

    assert sorted(found) == sorted(PROOFS)


def test_every_change_outside_the_unit_of_work_has_a_reason() -> None:
    found = {
        str(file.relative_to(ROOT / service / "src"))
        for service in SERVICES
        for file in (ROOT / service / "src").rglob("*.py")
        if "outside_unit_of_work()" in file.read_text()
    }

    assert sorted(found) == sorted(COMMITTED)
