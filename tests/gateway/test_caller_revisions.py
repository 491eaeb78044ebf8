"""The revision of the caller's account in the calls of the gateway."""

import asyncio
from datetime import UTC, datetime

import betterproto
import httpx
import pytest

from gateway import caller_revisions
from gateway.caller_revisions import CallerRevisions
from gateway.gateway import Gateway
from postbus.bus.v1 import Event, Reply
from postbus.users.v1 import FollowChanged, UserProfileUpdated
from shared.bus.memory import MemoryBus
from shared.wire import encode
from tests.gateway.conftest import Worker
from tests.gateway.listening import open_socket
from tests.tokens import TokenMaker

PATH = "/v1/posts/018f3f6e-0000-7000-8000-000000000001"


def an_event(message: betterproto.Message) -> Event:
    kind = f"postbus.users.v1.{type(message).__name__}"
    time = datetime(2026, 1, 2, tzinfo=UTC)
    return Event(id="e", type=kind, subject="alice", time=time, data=encode(message))


async def received(revisions: CallerRevisions, user_id: str, revision: int) -> None:
    async with asyncio.timeout(5):
        while revisions.highest(user_id) < revision:  # noqa: ASYNC110  # nothing reports a delivery
            await asyncio.sleep(0)


def test_highest_revision_is_known() -> None:
    revisions = CallerRevisions(MemoryBus())

    for revision in (2, 5, 3, 0):
        revisions.record("alice", revision)

    assert (revisions.highest("alice"), revisions.highest("bob"), revisions.highest("")) == (
        5,
        0,
        0,
    )


def test_least_recently_used_revision_is_dropped_first() -> None:
    revisions = CallerRevisions(MemoryBus())
    revisions.record("first", 1)
    revisions.record("second", 1)
    revisions.highest("first")

    for number in range(99_999):
        revisions.record(str(number), 1)

    assert (revisions.highest("first"), revisions.highest("second")) == (1, 0)


def test_unknown_revision_displaces_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_revisions, "_MAX_USERS", 1)
    revisions = CallerRevisions(MemoryBus())

    revisions.record("alice", 3)
    revisions.record("bob", 0)

    assert revisions.highest("alice") == 3


async def test_revisions_of_changes_at_other_gateways_are_read_from_events() -> None:
    bus = MemoryBus()
    revisions = CallerRevisions(bus)
    await revisions.run()

    follow = FollowChanged(follower_id="alice", followed_id="bob", follower_revision=4)
    await bus.publish(an_event(follow))
    await bus.publish(Event(id="e", type="postbus.users.v1.FollowChanged", data=b"\xff"))
    await bus.publish(an_event(UserProfileUpdated(user_id="cyd", revision=7)))

    await received(revisions, "cyd", 7)
    assert (revisions.highest("alice"), revisions.highest("bob")) == (4, 0)


async def test_call_has_the_revision_of_the_reply_to_the_last_change(
    gateway: httpx.AsyncClient, worker: Worker, tokens: TokenMaker
) -> None:
    alice = {"Authorization": f"Bearer {tokens.token('alice')}"}
    bob = {"Authorization": f"Bearer {tokens.token('bob')}"}
    worker.reply = Reply(payload=b"", caller_revision=3)
    await gateway.patch("/v1/me", json={}, headers=alice)
    worker.reply = Reply(payload=b"")

    for headers in (alice, bob, {}):
        await gateway.get(PATH, headers=headers)

    assert [request.caller_revision for _, request in worker.requests] == [0, 3, 0, 0]


async def test_socket_and_rest_share_the_known_revisions(
    app: Gateway, gateway: httpx.AsyncClient, worker: Worker, tokens: TokenMaker
) -> None:
    token = tokens.token("alice")
    kind = "type.googleapis.com/postbus.users.v1.GetMeRequest"
    call = {"method": "postbus.users.v1.UsersService.GetMe", "request": {"@type": kind}}
    worker.reply = Reply(payload=b"", caller_revision=3)
    async with open_socket(app) as socket:
        await socket.request({"id": "1", "authenticate": {"accessToken": token}})
        await socket.request({"id": "2", "call": call})
        await gateway.get(PATH, headers={"Authorization": f"Bearer {token}"})
        await socket.request({"id": "3", "call": call})

    assert [request.caller_revision for _, request in worker.requests] == [0, 3, 3]
