"""Envelopes with absurd values: each field of the bus's messages, sent by each account."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

import aio_pika
import httpx
import pytest
from aio_pika.abc import AbstractChannel, AbstractQueue
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from postbus.bus.v1 import Code, Event
from postbus.posts.v1 import CreatePostRequest, GetPostRequest
from postbus.users.v1 import GetMeRequest, UserProfileUpdated
from shared.bus.amqp.topology import owner
from shared.bus.handler_matching import WORKERS
from shared.wire import encode, message_class, parse
from tests.conftest import Place
from tests.messages import message, reply_queue
from tests.people import Client, Person, eventually, sign_up
from tests.system import System
from tools.services import call_graph

Unique = Callable[[str], str]
Database = AsyncDatabase[dict[str, Any]]

LONG: Final = "x" * 300_000
INTEGERS: Final = {
    FieldDescriptor.TYPE_INT64: (-(2**63), -1, 2**62, 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (2**53, 2**62, 2**63, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: (-(2**31), -1, 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (2**31, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED32: (1, 2**31, 2**32 - 1),
    FieldDescriptor.TYPE_ENUM: (-1, 2**31 - 1),
}
METHODS: Final = {
    "postbus.posts.v1.PostsService.CreatePost": encode(CreatePostRequest(title="Absurd")),
    "postbus.posts.v1.PostsService.GetPost": encode(GetPostRequest(id="absurd")),
    "postbus.users.v1.UsersService.GetMe": encode(GetMeRequest()),
}
TYPED: Final = frozenset(Code) - {Code.UNSPECIFIED, Code.INTERNAL, Code.UNKNOWN, Code.DATA_LOSS}
CALLS: Final = call_graph()
CALLERS: Final = [
    (caller, callee) for caller, callees in CALLS.items() for callee in sorted(callees)
]


def values(field: FieldDescriptor) -> list[Any]:
    """Return absurd values of a field; for a list, one absurd element or far too many elements."""
    each: list[Any]
    if field.message_type is not None:
        kind = message_class(field.message_type.full_name)
        each = [kind(**fields) for fields in absurd(field.message_type)]
    elif field.type == FieldDescriptor.TYPE_STRING:
        each = [LONG, "\0", "\u202e\U0001f600" * 200, "x\ny"]
    elif field.type == FieldDescriptor.TYPE_BYTES:
        each = [b"\xff" * 1000, b"\x0a" * 300_000]
    else:
        each = [*INTEGERS.get(field.type, (True,))]
    if not field.is_repeated:
        return each
    return [*([one] for one in each), [type(each[0])()] * 100_000]


def absurd(kind: Descriptor) -> Iterator[dict[str, Any]]:
    """Yield the fields of messages with one absurd value."""
    for field in kind.fields:
        for value in values(field):
            yield {field.name: value}


def messages(name: str, **usual: Any) -> list[bytes]:
    """Return encoded messages with one absurd value each, and usual values of the other fields."""
    kind: Any = message_class(f"postbus.bus.v1.{name}")
    return [kind(**usual | fields).SerializeToString() for fields in absurd(kind.DESCRIPTOR)]


@pytest.fixture
async def channel(place: Place, system: System) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(place.amqp_url) as connection:
        yield await connection.channel()


@pytest.fixture
async def database(system: System) -> AsyncIterator[Database]:
    """The database of `posts`."""
    url = system.databases("posts")["POSTBUS_MONGO_URL"]
    async with AsyncMongoClient[dict[str, Any]](url) as opened:
        yield opened.get_default_database()


@pytest.fixture
async def alice(client: httpx.AsyncClient, unique: Unique) -> Person:
    return await sign_up(client, unique("alice"))


async def replies(queue: AbstractQueue, count: int) -> list[Any]:
    async with asyncio.timeout(30), queue.iterator(no_ack=True) as arriving:
        bodies = [(await anext(arriving)).body for _ in range(count)]
    assert all(len(each) < 64 * 2**10 for each in bodies)
    return [parse("postbus.bus.v1.Reply", each) for each in bodies]


async def require_service(client: httpx.AsyncClient, alice: Person) -> None:
    """Require that the system serves, at once, as if nothing had happened."""
    began = time.monotonic()
    me = await client.get("/v1/me", headers=alice.headers)
    posts = await client.get("/v1/posts", headers=alice.headers)
    assert (me.status_code, posts.status_code) == (200, 200)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("caller", "callee"), CALLERS)
async def test_every_field_of_a_request_may_be_absurd(
    client: httpx.AsyncClient,
    channel: AbstractChannel,
    database: Database,
    alice: Person,
    caller: str,
    callee: str,
) -> None:
    queue = await reply_queue(channel, caller)
    calls = await channel.get_exchange(f"postbus.calls.{callee}")
    for method, payload in METHODS.items():
        if owner(method) != callee:
            continue
        usual = {"payload": payload, "access_token": alice.token, "budget_ms": 5000}
        sent = messages("Request", **usual)
        for body in sent:
            request = message(body, caller, reply_to=queue.name, correlation_id=uuid4().hex)
            await calls.publish(request, method)
        answers = await replies(queue, len(sent))

        errors = [each.error for each in answers if each.error.code]
        assert [each for each in errors if each.code not in TYPED] == []
        assert len(errors) < len(answers)  # most absurd values change nothing
    await require_service(client, alice)
    stored = database["inbox"].aggregate([{"$project": {"size": {"$bsonSize": "$$ROOT"}}}])
    assert max([each["size"] async for each in await stored]) < 16 * 2**10


@pytest.mark.parametrize("callee", WORKERS)
async def test_every_field_of_a_control_or_a_batch_may_be_absurd(
    client: httpx.AsyncClient, channel: AbstractChannel, alice: Person, callee: str
) -> None:
    queue = await reply_queue(channel, "gateway")
    controls = await channel.get_exchange(f"postbus.control.{callee}")
    calls = await channel.get_exchange(f"postbus.calls.{callee}")
    for method in METHODS:
        if owner(method) == callee:
            for body in messages("Control", reply_to=queue.name, correlation_id="x"):
                await controls.publish(message(body, "gateway"), method)
            for body in messages("Batch"):
                batch = message(body, "gateway", reply_to=queue.name)
                await calls.publish(batch, f"{method}/batch")

    await require_service(client, alice)


@pytest.mark.parametrize("callee", WORKERS)
async def test_every_field_of_a_reply_may_be_absurd(
    place: Place,
    amqp_management_url: str,
    client: httpx.AsyncClient,
    channel: AbstractChannel,
    alice: Person,
    callee: str,
) -> None:
    """Replies without a call, to the queues of every caller of the service."""
    async with httpx.AsyncClient(base_url=amqp_management_url, timeout=10) as management:
        path = f"/api/queues{httpx.URL(place.amqp_url).path}?columns=name"
        queues = (await management.get(path)).raise_for_status().json()
    names = [each["name"] for each in queues if ".replies." in each["name"]]
    assert {name.partition(".")[0] for name in names} >= {"gateway"}
    for name in names:
        exchange = await channel.get_exchange(f"postbus.replies.{name.partition('.')[0]}")
        for kind in ("Reply", "ProbeAnswer", "Batch"):
            for body in messages(kind):
                for id_ in (None, "unknown"):
                    await exchange.publish(message(body, callee, correlation_id=id_), name)

    await require_service(client, alice)


async def test_every_field_of_an_event_may_be_absurd(
    client: httpx.AsyncClient, channel: AbstractChannel, database: Database, alice: Person
) -> None:
    events = await channel.get_exchange("postbus.events.users")
    type_ = "postbus.users.v1.UserProfileUpdated"
    profile = UserProfileUpdated(user_id=alice.id, username=alice.username, version=1)
    forged = [
        replace(profile, username="forged", version=2**62),
        replace(profile, version=0, revision=2**62),
        replace(profile, version=0, revision=2**63 - 1),
        replace(profile, user_id=LONG, username=LONG),
    ]
    usual = {"type": type_, "subject": alice.id}
    bodies = messages("Event", **usual, id=str(uuid4()), data=encode(profile))
    bodies += [
        encode(Event(type=type_, subject=alice.id, id=str(uuid4()), data=encode(each)))
        for each in forged
    ]
    for body in bodies:
        await events.publish(message(body, "users"), type_)

    await Client(client, alice).done("PATCH", "/v1/me", {"displayName": "Renamed"})

    async def renamed() -> bool:
        author = await database["authors"].find_one({"_id": alice.id})
        return author is not None and author["display_name"] == "Renamed"

    await eventually(renamed)
    author = await database["authors"].find_one({"_id": alice.id})
    assert author is not None
    assert (author["username"], author["revision"], author["ahead"]) == (alice.username, 1, None)
    await require_service(client, alice)


@pytest.mark.parametrize("claimed", [2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
async def test_revision_that_a_caller_claims_is_not_stored(
    client: httpx.AsyncClient,
    channel: AbstractChannel,
    database: Database,
    alice: Person,
    claimed: int,
) -> None:
    """After a lost event, `posts` copies the data of the caller again, with the revision."""
    await Client(client, alice).done("PATCH", "/v1/me", {"displayName": "Alice"})

    async def stored(revision: int) -> bool:
        author = await database["authors"].find_one({"_id": alice.id})
        return author is not None and author["revision"] == revision

    await eventually(lambda: stored(1))
    missing = {"$set": {"revision": 0, "ahead": [1]}}
    await database["authors"].update_one({"_id": alice.id}, missing)
    queue = await reply_queue(channel, "gateway")
    calls = await channel.get_exchange("postbus.calls.posts")
    kind: Any = message_class("postbus.bus.v1.Request")
    method = "postbus.posts.v1.PostsService.CreatePost"
    request = kind(
        payload=METHODS[method],
        access_token=alice.token,
        budget_ms=5000,
        caller_revision=claimed,
    )
    await calls.publish(
        message(request.SerializeToString(), "gateway", reply_to=queue.name, correlation_id="1"),
        method,
    )

    [reply] = await replies(queue, 1)

    assert (reply.error.code, reply.caller_revision) == (Code.UNSPECIFIED, 0)
    await eventually(lambda: stored(1))
