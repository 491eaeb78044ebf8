"""Times of services in other languages, which have nanoseconds, or are not set, or not valid."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from gateway import health
from gateway.worker_metrics import WorkerMetrics
from postbus.bus.v1 import Code, Event
from postbus.users.v1 import UserRegistered
from shared.bus import Dispatcher
from shared.bus.memory import MemoryBus
from shared.bus.message_bus import RpcHandler
from shared.bus.reply import result_of
from shared.errors import ServiceError
from shared.outbox.unit_of_work import without_store
from shared.runtime.session_verifier import SessionVerifier
from shared.runtime.worker import Health
from shared.wire import decode, encode, message_class, to_upb
from tests.shared.test_dispatch import Posts

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def google(name: str, **fields: Any) -> Any:
    return message_class(f"postbus.bus.v1.{name}")(**fields)


def event(**fields: Any) -> bytes:
    """Return the envelope of a UserRegistered as a service in another language writes it."""
    data = encode(UserRegistered(user_id="1", username="alice", created_at=NOW))
    values = {"id": "1", "type": "postbus.users.v1.UserRegistered", "data": data, **fields}
    encoded: bytes = google("Event", **values).SerializeToString()
    return encoded


@pytest.fixture
def posts() -> Posts:
    return Posts()


@pytest.fixture
def dispatcher(posts: Posts, sessions: SessionVerifier) -> Dispatcher:
    return Dispatcher("posts", [posts, Health({})], sessions, without_store(MemoryBus().publish))


@pytest.mark.parametrize(
    "time",
    [None, {"seconds": 1, "nanos": 1}, {"seconds": 2**62}, {"nanos": -1}, {"nanos": 2**31 - 1}],
    ids=str,
)
async def test_event_is_consumed_whatever_the_time_of_its_envelope(
    dispatcher: Dispatcher, posts: Posts, time: dict[str, int] | None
) -> None:
    failure = await dispatcher.consume(event(**({} if time is None else {"time": time})))

    assert failure is None
    assert posts.seen == ["alice"]


async def test_event_with_nanoseconds_in_its_data_is_refused_with_the_field(
    dispatcher: Dispatcher, posts: Posts
) -> None:
    registered = to_upb(UserRegistered(user_id="1", username="alice", created_at=NOW))
    registered.created_at.nanos = 1001

    with capture_logs() as lines:
        failure = await dispatcher.consume(event(data=registered.SerializeToString()))

    assert failure is not None
    assert (failure.reason, failure.retry) == ("INVALID_FIELDS", False)
    assert failure.message.endswith(" createdAt: must have whole microseconds.")
    assert posts.seen == []
    assert [line["event"] for line in lines] == ["event.failed"]  # no sign of an attack


@pytest.mark.parametrize(
    ("seconds", "nanos", "expected"),
    [
        (2, 500_000_001, 2.500000001),
        (0, 0, None),
        (-1, 0, None),
        (2**62, 0, None),
        (-(2**63), -(2**31), None),
    ],
)
def test_retry_time_of_an_error_that_is_no_duration_is_ignored(
    seconds: int, nanos: int, expected: float | None
) -> None:
    error = {"code": 8, "reason": "BUSY", "retry_after": {"seconds": seconds, "nanos": nanos}}

    with pytest.raises(ServiceError) as raised:
        result_of(google("Reply", error=error).SerializeToString())

    assert (raised.value.code, raised.value.reason) == (Code.RESOURCE_EXHAUSTED, "BUSY")
    assert raised.value.retry_after == expected
    sent = raised.value.to_message("").retry_after
    assert sent == (None if expected is None else timedelta(seconds=2.5))


def replying(payload: Any) -> RpcHandler:
    async def answer(_route: str, _body: bytes, _service: str) -> bytes:
        reply: bytes = google("Reply", payload=payload.SerializeToString()).SerializeToString()
        return reply

    return answer


@pytest.mark.parametrize("seconds", [0, 2**62])
async def test_worker_with_any_time_is_ready(sessions: SessionVerifier, seconds: int) -> None:
    bus = MemoryBus()
    reply = google("CheckResponse", time={"seconds": seconds, "nanos": 123_456_789})
    await bus.serve("posts", ["postbus.bus.v1.HealthService.Check.posts"], replying(reply))

    parts = await health.Health(bus, sessions).parts()

    assert {part.name: part.ready for part in parts}["posts"]


async def test_metrics_show_a_worker_with_any_start_time() -> None:
    bus = MemoryBus()
    started = {"seconds": 1_700_000_000, "nanos": 123_456_789}
    reply = google(
        "GetStatisticsResponse", instance={"worker": "posts", "id": "go", "started_at": started}
    )
    route = "postbus.bus.v1.WorkerService.GetStatistics.posts"
    await bus.serve("posts", [route], replying(reply))

    registry = await WorkerMetrics(bus, {}).collect()

    line = 'postbus_worker_start_time_seconds{instance="go",worker="posts"} 1.70000000012345'
    assert line in generate_latest(registry).decode()


def test_envelope_keeps_the_epoch() -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)

    assert decode(Event, encode(Event(time=epoch))).time == epoch
    assert decode(Event, encode(Event())).time is None
