"""Ids and addresses of envelopes are bounded: events, nested calls and log lines repeat them."""

import pytest

from postbus.bus.v1 import Event, Request
from postbus.posts.v1 import GetPostRequest
from postbus.users.v1 import UserRegistered
from shared.access_tokens import TokenVerifier
from shared.bus import Dispatcher
from shared.bus.memory import MemoryBus
from shared.outbox.unit_of_work import without_store
from shared.runtime.session_verifier import SessionVerifier
from shared.runtime.worker import Health
from shared.wire import encode, parse
from tests.shared.test_dispatch import GET, POST_ID, Posts

LIMIT = 255


@pytest.fixture
def posts() -> Posts:
    return Posts()


@pytest.fixture
async def dispatcher(posts: Posts, verifier: TokenVerifier) -> Dispatcher:
    sessions = SessionVerifier(MemoryBus(), verifier)
    return Dispatcher("posts", [posts, Health({})], sessions, without_store(MemoryBus().publish))


@pytest.mark.parametrize("field", ["operation_id", "correlation_id"])
@pytest.mark.parametrize(("length", "reason"), [(LIMIT, ""), (LIMIT + 1, "MALFORMED_MESSAGE")])
async def test_request_with_a_longer_id_is_refused(
    dispatcher: Dispatcher, field: str, length: int, reason: str
) -> None:
    request = Request(payload=encode(GetPostRequest(id=POST_ID)), budget_ms=5000)
    setattr(request, field, "x" * length)

    reply = await dispatcher.answer(GET, encode(request), "gateway")  # type: ignore[misc]  # no stream

    assert parse("postbus.bus.v1.Reply", reply).error.reason == reason  # type: ignore[attr-defined]  # upb's class


@pytest.mark.parametrize("field", ["id", "correlation_id"])
@pytest.mark.parametrize(("length", "refused"), [(LIMIT, False), (LIMIT + 1, True)])
async def test_event_with_a_longer_id_is_refused(
    dispatcher: Dispatcher, posts: Posts, field: str, length: int, refused: bool
) -> None:
    data = encode(UserRegistered(user_id=POST_ID, username="ann"))
    event = Event(id="1", type="postbus.users.v1.UserRegistered", data=data)
    setattr(event, field, "x" * length)

    failure = await dispatcher.consume(encode(event))

    assert (failure is not None) is refused
    if failure is not None:
        assert (failure.reason, failure.retry, posts.seen) == ("MALFORMED_MESSAGE", False, [])


async def test_long_address_of_a_client_is_cut(dispatcher: Dispatcher) -> None:
    served = dispatcher._methods[GET]
    payload = encode(GetPostRequest(id=POST_ID))
    request = parse(
        "postbus.bus.v1.Request", encode(Request(payload=payload, client_address="1" * 10_000))
    )

    context, _ = dispatcher._requests.verify(served, request, "", "gateway")

    assert context.client_address == "1" * 64
