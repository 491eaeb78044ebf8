"""Reads of authors: when the projection is used, and when `users` is called."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from pymongo.asynchronous.database import AsyncDatabase
from uuid_utils import uuid7

from gateway.caller_revisions import CallerRevisions
from gateway.worker_metrics import WorkerMetrics
from postbus.bus.v1 import Event
from postbus.posts.v1 import CreatePostRequest, GetPostRequest, GetPostResponse
from postbus.users.v1 import FollowChanged
from shared.bus import Call
from shared.bus.amqp import AmqpBus, connect
from shared.errors import ServiceError
from shared.wire import decode, encode
from tests.conftest import Place
from tests.people import Client, Person, eventually
from tests.system import System

Database = AsyncDatabase[dict[str, Any]]
POSTS = "postbus.posts.v1.PostsService"


@pytest.fixture
async def bus(place: Place, system: System) -> AsyncIterator[AmqpBus]:
    """The bus of another gateway."""
    async with connect(SecretStr(place.amqp_url), "gateway") as opened:
        await opened.wait_ready()
        yield opened


@pytest.fixture
async def owner(place: Place, system: System) -> AsyncIterator[AmqpBus]:
    """A bus that publishes as `users`."""
    async with connect(SecretStr(place.amqp_url), "users") as opened:
        await opened.wait_ready()
        yield opened


@pytest.fixture
async def path(as_alice: Client) -> str:
    """The path of a post of Alice. Her author data is stored."""
    post = await as_alice.done("POST", "/v1/posts", {"title": "Hers"})
    return f"/v1/posts/{post['id']}"


async def calls_of_users(bus: AmqpBus) -> float:
    """Return the number of calls that `users` has served."""
    return sum(
        sample.value
        for family in (await WorkerMetrics(bus, {}).collect()).collect()
        for sample in family.samples
        if sample.name == "postbus_handler_seconds_count"
        and sample.labels["handler"].startswith("postbus.users.v1.UsersService.")
    )


async def get(bus: AmqpBus, path: str, person: Person, revision: int) -> GetPostResponse:
    """Get a post with a revision of the caller, as a gateway sends it."""
    call = Call.new(
        encode(GetPostRequest(id=path.rpartition("/")[2])),
        budget=5,
        access_token=person.token,
        caller_revision=revision,
    )
    return decode(GetPostResponse, (await bus.call(f"{POSTS}.GetPost", call)).payload)


async def until_stored(database: Database, person: Person, revision: int) -> None:
    async def stored() -> bool:
        author = await database["authors"].find_one({"_id": person.id})
        return author is not None and author.get("revision") == revision

    await eventually(stored)


async def test_users_is_not_called_while_the_projection_is_current(
    bus: AmqpBus,
    as_alice: Client,
    as_bob: Client,
    path: str,
    database: Database,
    alice: Person,
    bob: Person,
) -> None:
    await as_bob.done("PUT", f"/v1/users/{alice.username}/follow")
    await as_alice.done("PATCH", "/v1/me", {"displayName": "Alice"})
    for person in (alice, bob):
        await until_stored(database, person, 1)
    await as_bob.done("GET", path)  # the first call of the session
    before = await calls_of_users(bus)

    read = await as_bob.done("GET", path)
    await as_bob.done("GET", "/v1/feed")
    await as_bob.done("POST", f"{path}/comments", {"body": "x"})
    await as_bob.done("PUT", f"{path}/like")
    for kind in ("/v1/posts?pageSize=5", f"{path}/comments", "/v1/notifications"):
        await as_alice.done("GET", kind)
    await as_alice.done("POST", "/v1/posts", {"title": "Another"})
    await as_alice.done("PATCH", path, {"title": "New"})

    assert await calls_of_users(bus) == before
    assert (read["author"]["displayName"], read["author"]["followed"]) == ("Alice", True)


async def test_users_is_called_if_the_gateway_sends_a_later_revision(
    bus: AmqpBus, path: str, alice: Person
) -> None:
    await get(bus, path, alice, 0)
    before = await calls_of_users(bus)

    for revision, more in ((0, 0), (1, 1), (0, 1)):
        read = await get(bus, path, alice, revision)
        assert read.post.author.username == alice.username
        assert await calls_of_users(bus) == before + more


async def test_projection_is_used_while_users_is_unavailable(
    system: System, bus: AmqpBus, path: str, alice: Person
) -> None:
    await system.stop("users")
    try:
        read = await get(bus, path, alice, 1)
    finally:
        await system.start("users")
        await system.until_ready()

    assert read.post.author.username == alice.username


async def test_other_gateway_receives_a_revision_within_a_second(
    bus: AmqpBus, as_alice: Client, alice: Person, bob: Person
) -> None:
    other = CallerRevisions(bus)
    await other.run()

    for number in range(1, 11):
        follow = f"/v1/users/{bob.username}/follow"
        await as_alice.done("PUT" if number % 2 else "DELETE", follow)
        async with asyncio.timeout(1):
            while other.highest(alice.id) < number:  # noqa: ASYNC110  # nothing reports a delivery
                await asyncio.sleep(0.001)


async def test_token_of_an_ended_session_is_refused_for_reads_and_writes(
    client: httpx.AsyncClient, bus: AmqpBus, as_alice: Client, path: str, alice: Person
) -> None:
    await get(bus, path, alice, 0)
    await as_alice.done("POST", "/v1/auth/logout")

    async def refused() -> bool:  # the worker consumes the same event as the gateway
        try:
            await get(bus, path, alice, 0)
        except ServiceError as error:
            return error.reason == "SESSION_REVOKED"
        return False

    await eventually(refused, seconds=1)
    request = encode(CreatePostRequest(title="Late"))
    call = Call.new(request, budget=5, access_token=alice.token)
    with pytest.raises(ServiceError, match="SESSION_REVOKED"):
        await bus.call(f"{POSTS}.CreatePost", call)


async def test_deleted_account_is_refused_before_its_event_arrives(
    bus: AmqpBus, path: str, alice: Person
) -> None:
    await get(bus, path, alice, 0)
    deletion = Call.new(b"", budget=5, access_token=alice.token)
    result = await bus.call("postbus.users.v1.UsersService.DeleteMe", deletion)

    assert result.caller_revision == 1  # no event has this revision: no projection is current
    with pytest.raises(ServiceError, match="SESSION_REVOKED"):
        await get(bus, path, alice, result.caller_revision)


async def test_late_follow_event_stores_only_its_revision(
    owner: AmqpBus, database: Database, path: str, alice: Person, bob: Person
) -> None:
    id_ = f"{alice.id}/{bob.id}"
    for revision, following in ((2, False), (1, True)):
        change = FollowChanged(
            follow_id=id_,
            follower_id=alice.id,
            followed_id=bob.id,
            following=following,
            version=revision,
            follower_revision=revision,
        )
        await owner.publish(
            Event(
                id=str(uuid7()),
                source="users",
                type="postbus.users.v1.FollowChanged",
                subject=id_,
                time=datetime.now(UTC),
                data=encode(change),
                version=revision,
            )
        )

    await until_stored(database, alice, 2)
    assert await database["follows"].find_one({"_id": id_}) is None


async def test_projection_is_copied_again_after_a_lost_event(
    bus: AmqpBus,
    as_alice: Client,
    path: str,
    database: Database,
    alice: Person,
    bob: Person,
) -> None:
    await as_alice.done("PUT", f"/v1/users/{bob.username}/follow")
    await as_alice.done("PATCH", "/v1/me", {"displayName": "Alice"})
    await until_stored(database, alice, 2)
    missing = {"$set": {"revision": 0, "ahead": [2]}}
    await database["authors"].update_one({"_id": alice.id}, missing)
    await database["follows"].delete_one({"_id": f"{alice.id}/{bob.id}"})

    await as_alice.done("GET", path)

    await until_stored(database, alice, 2)
    assert await database["follows"].find_one({"_id": f"{alice.id}/{bob.id}"})
    before = await calls_of_users(bus)
    await as_alice.done("GET", path)
    assert await calls_of_users(bus) == before
