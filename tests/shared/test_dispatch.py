"""The dispatcher: verification, validation, units of work, replies and errors."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from datetime import timedelta

import betterproto
import pytest
from structlog.testing import capture_logs

from postbus import reasons
from postbus.bus.v1 import (
    Code,
    Event,
    GetStatisticsRequest,
    ListHandlersRequest,
    Outcome,
    PingRequest,
    Reply,
    WorkerServiceStub,
)
from postbus.posts.v1 import (
    CreatePostRequest,
    CreatePostResponse,
    GetPostRequest,
    GetPostResponse,
    Post,
    PostsServiceBase,
    PostsServiceStub,
)
from postbus.users.v1 import SessionsRevoked, UserRegistered
from postbus_runtime.reasons import Reason
from shared.access_tokens import TokenVerifier
from shared.bus import Call, Dispatcher, EventPattern, MessagePattern, ServiceChannel
from shared.bus.handler_matching import ContractMismatchError
from shared.bus.handler_metrics import Statistics
from shared.bus.memory import MemoryBus
from shared.bus.served_method import run_stream
from shared.context import Context
from shared.errors import ServiceError
from shared.outbox.inbox import Operation, OperationResult
from shared.outbox.unit_of_work import Execution, current_unit_of_work, without_store
from shared.runtime.session_verifier import SessionVerifier
from shared.runtime.worker import Application, Health, serve
from shared.security_log import SecurityEvent
from shared.trace import new_traceparent
from shared.wire import decode, encode
from tests.idle import complete
from tests.tokens import TokenMaker

CREATE = "postbus.posts.v1.PostsService.CreatePost"
GET = "postbus.posts.v1.PostsService.GetPost"
COUNTED_BY_ALL = "postbus.bus.v1.WorkerService.GetStatistics.posts"
POST_ID = "018f3f6e-0000-7000-8000-000000000001"


@complete
class Posts:
    """Handlers of every rpc of `posts`, and one consumer."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.consumed = asyncio.Event()
        self.failure: Exception | None = None
        self.answer = GetPostResponse()

    @MessagePattern(PostsServiceBase.create_post)
    async def create_post(self, request: CreatePostRequest, context: Context) -> CreatePostResponse:
        self.seen.append((request.title, context.user_id))
        return CreatePostResponse(post=Post(id=POST_ID, title=request.title))

    @MessagePattern(PostsServiceBase.get_post)
    async def get_post(self, _request: GetPostRequest, _context: Context) -> GetPostResponse:
        if self.failure is not None:
            raise self.failure
        return self.answer

    @EventPattern(UserRegistered)
    async def user_registered(self, event: UserRegistered, _context: Context) -> None:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self.seen.append(event.username)
        self.consumed.set()


@pytest.fixture
def posts() -> Posts:
    return Posts()


@pytest.fixture
async def bus(posts: Posts, verifier: TokenVerifier) -> AsyncIterator[MemoryBus]:
    """A bus on which `posts` is served as by a worker."""
    bus = MemoryBus(delays=(0.05,))
    async with serve("posts", Application(handlers=[posts], probes={}), bus, verifier):
        yield bus


def a_call(payload: bytes, *, seconds: float = 5, token: str = "") -> Call:
    return Call.new(payload, budget=seconds, access_token=token)


async def failure_of(bus: MemoryBus, route: str, call: Call) -> ServiceError:
    with pytest.raises(ServiceError) as raised:
        await bus.call(route, call)
    return raised.value


async def reply_of(dispatcher: Dispatcher, request: bytes, route: str = GET) -> Reply:
    answer = dispatcher.answer(route, request, "gateway")
    assert isinstance(answer, Coroutine)
    return decode(Reply, await answer)


async def test_handler_gets_the_request_and_the_verified_caller(
    bus: MemoryBus, posts: Posts, tokens: TokenMaker
) -> None:
    request = a_call(encode(CreatePostRequest(title="Hi")), token=tokens.token("alice"))

    response = decode(CreatePostResponse, (await bus.call(CREATE, request)).payload)

    assert response.post.title == "Hi"
    assert posts.seen == [("Hi", "alice")]


@pytest.mark.parametrize("kind", ["none", "forged", "expired", "garbage"])
async def test_token_that_cannot_be_verified_is_refused(
    bus: MemoryBus, posts: Posts, tokens: TokenMaker, kind: str
) -> None:
    token = {
        "none": "",
        "forged": TokenMaker().token("alice"),
        "expired": tokens.token("alice", lifetime=timedelta(minutes=-1)),
        "garbage": "a.b.c",
    }[kind]

    error = await failure_of(
        bus, CREATE, a_call(encode(CreatePostRequest(title="Hi")), token=token)
    )

    assert error.code is Code.UNAUTHENTICATED
    assert posts.seen == []


async def test_method_with_callers_refuses_every_other_service(bus: MemoryBus) -> None:
    refused = Code.PERMISSION_DENIED, "SERVICE_NOT_ALLOWED", Outcome.NO_EFFECT
    for service in ("posts", "users", ""):
        bus.service = service
        error = await failure_of(bus, COUNTED_BY_ALL, a_call(b""))
        assert (error.code, error.reason, error.outcome) == refused
    for service in ("gateway", "operator"):
        bus.service = service
        await bus.call(COUNTED_BY_ALL, a_call(b""))

    assert bus.security_log.counts == {SecurityEvent.FORBIDDEN: 3}


async def test_handler_knows_the_service_that_calls(sessions: SessionVerifier) -> None:
    services = list[str]()

    class Recording(Posts):
        @MessagePattern(PostsServiceBase.get_post)
        async def get_post(self, _request: GetPostRequest, context: Context) -> GetPostResponse:
            services.append(context.calling_service)
            return GetPostResponse()

    bus = MemoryBus(service="search")
    dispatcher = Dispatcher(
        "posts", [Recording(), Health({})], sessions, without_store(bus.publish)
    )
    await bus.serve("posts", dispatcher.routes, dispatcher.answer)
    await bus.call(GET, a_call(encode(GetPostRequest(id=POST_ID))))

    assert services == ["search"]


async def test_request_that_violates_the_contract_never_reaches_the_handler(
    bus: MemoryBus, posts: Posts, tokens: TokenMaker
) -> None:
    request = a_call(encode(CreatePostRequest(title="")), token=tokens.token("alice"))

    error = await failure_of(bus, CREATE, request)

    assert error.code is Code.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == ["title"]
    assert posts.seen == []


@pytest.mark.parametrize("payload", [b"\x0a\xff", b"\x0a\x05abc", b"\x0f", b"\xff" * 20])
async def test_malformed_payload_is_an_invalid_argument(bus: MemoryBus, payload: bytes) -> None:
    error = await failure_of(bus, GET, a_call(payload))

    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


async def test_malformed_envelope_is_an_invalid_argument(
    posts: Posts, sessions: SessionVerifier
) -> None:
    dispatcher = Dispatcher(
        "posts", [posts, Health({})], sessions, without_store(MemoryBus().publish)
    )

    reply = await reply_of(dispatcher, b"\xff\xff\xff")

    assert reply.error.code == Code.INVALID_ARGUMENT


async def test_error_with_a_reason_that_the_rpc_does_not_name_is_reported(
    bus: MemoryBus, posts: Posts, undeclared_reasons: list[str]
) -> None:
    posts.failure = ServiceError(reasons.EMAIL_TAKEN, "No.")

    error = await failure_of(bus, GET, a_call(encode(GetPostRequest(id=POST_ID))))

    assert error.reason == "EMAIL_TAKEN"
    assert bus.incidents == {"error.undeclared_reason": 1}
    assert undeclared_reasons == [f"{GET}: ALREADY_EXISTS EMAIL_TAKEN"]
    undeclared_reasons.clear()


async def test_unexpected_exception_reveals_no_details(bus: MemoryBus, posts: Posts) -> None:
    posts.failure = RuntimeError("password=hunter2")

    error = await failure_of(bus, GET, a_call(encode(GetPostRequest(id=POST_ID))))

    assert (error.code, error.reason) == (Code.INTERNAL, "INTERNAL")
    assert "hunter2" not in error.message
    assert len(error.trace_id) == 32


async def test_handler_is_cancelled_at_the_deadline(
    sessions: SessionVerifier,
) -> None:
    cancelled = asyncio.Event()

    class Slow(Posts):
        @MessagePattern(PostsServiceBase.get_post)
        async def get_post(self, _request: GetPostRequest, _context: Context) -> GetPostResponse:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return GetPostResponse()

    dispatcher = Dispatcher(
        "posts", [Slow(), Health({})], sessions, without_store(MemoryBus().publish)
    )
    body = a_call(encode(GetPostRequest(id=POST_ID)), seconds=0.2).request
    reply = await reply_of(dispatcher, body)

    assert reply.error.code == Code.DEADLINE_EXCEEDED
    assert cancelled.is_set()


async def test_call_runs_for_a_minute_at_most(sessions: SessionVerifier) -> None:
    budgets: list[float] = []

    class Recording(Posts):
        @MessagePattern(PostsServiceBase.get_post)
        async def get_post(self, _request: GetPostRequest, context: Context) -> GetPostResponse:
            budgets.append(context.remaining)
            return GetPostResponse()

    dispatcher = Dispatcher(
        "posts", [Recording(), Health({})], sessions, without_store(MemoryBus().publish)
    )
    for seconds in (50, 1000):
        body = a_call(encode(GetPostRequest(id=POST_ID)), seconds=seconds).request
        await reply_of(dispatcher, body)

    assert [round(each) for each in budgets] == [50, 60]


async def test_consumer_of_an_event_runs_for_30_seconds_at_most(
    sessions: SessionVerifier,
) -> None:
    budgets: list[float] = []

    class Recording(Posts):
        @EventPattern(UserRegistered)
        async def user_registered(self, _event: UserRegistered, context: Context) -> None:
            budgets.append(context.remaining)

    dispatcher = Dispatcher(
        "posts", [Recording(), Health({})], sessions, without_store(MemoryBus().publish)
    )

    assert await dispatcher.consume(encode(_registered())) is None
    assert [round(each) for each in budgets] == [30]


async def test_event_is_an_operation_of_each_of_its_consumers(
    posts: Posts, sessions: SessionVerifier
) -> None:
    operations = list[Operation]()

    async def perform(operation: Operation, _handle: Execution) -> OperationResult:
        operations.append(operation)
        return OperationResult(b"", replayed=False)

    one, two = (Dispatcher("posts", [posts, Health({})], sessions, perform) for _ in range(2))
    event_type = "postbus.users.v1.UserRegistered"
    two._events.consumed[event_type]._name = f"other.{event_type}"
    event = _registered()
    event.version = 7
    for dispatcher in (one, one, two):
        assert await dispatcher.consume(encode(event)) is None

    assert [each.version for each in operations] == [7, 7, 7]
    assert operations[0].key == operations[1].key != operations[2].key
    assert operations[0].subject == operations[1].subject != operations[2].subject


async def operations_of(
    posts: Posts, sessions: SessionVerifier, *calls: tuple[str, str, str]
) -> list[Operation]:
    """Return the operations of calls with these tokens, operation ids and titles."""
    operations = list[Operation]()

    async def perform(operation: Operation, _handle: Execution) -> OperationResult:
        operations.append(operation)
        return OperationResult(b"", replayed=False)

    dispatcher = Dispatcher("posts", [posts, Health({})], sessions, perform)
    served = dispatcher._methods[CREATE]
    served.needs_user = False
    for token, operation_id, title in calls:
        call = Call.new(
            encode(CreatePostRequest(title=title)),
            budget=5,
            access_token=token,
            operation_id=operation_id,
        )
        await reply_of(dispatcher, call.request, CREATE)
    return operations


async def test_operation_ids_of_different_callers_do_not_collide(
    posts: Posts, sessions: SessionVerifier, tokens: TokenMaker
) -> None:
    alice, bob = tokens.token("alice"), tokens.token("bob")

    of_users = await operations_of(posts, sessions, (alice, "1", "a"), (bob, "1", "a"))
    anonymous = await operations_of(posts, sessions, ("", "1", "a"), ("", "1", "a"), ("", "1", "b"))

    assert of_users[0].key != of_users[1].key
    assert anonymous[0].key == anonymous[1].key != anonymous[2].key


async def test_fingerprint_of_a_request_is_keyed_by_its_operation_id(
    posts: Posts, sessions: SessionVerifier, tokens: TokenMaker
) -> None:
    alice = tokens.token("alice")

    one, same, other_id, other_request = await operations_of(
        posts, sessions, (alice, "1", "a"), (alice, "1", "a"), (alice, "2", "a"), (alice, "1", "b")
    )

    assert one.fingerprint == same.fingerprint
    assert len({each.fingerprint for each in (one, other_id, other_request)}) == 3


async def test_handler_is_told_whether_its_event_is_late(sessions: SessionVerifier) -> None:
    seen = list[bool]()

    class Recording(Posts):
        @EventPattern(UserRegistered)
        async def user_registered(self, _event: UserRegistered, context: Context) -> None:
            seen.append(context.late)

    store = without_store(MemoryBus().publish)

    async def perform(operation: Operation, handle: Execution) -> OperationResult:
        async def handle_late() -> bytes:
            unit = current_unit_of_work()
            assert unit is not None
            unit.late = True
            return await handle()

        return await store(operation, handle_late if len(seen) else handle)

    dispatcher = Dispatcher("posts", [Recording(), Health({})], sessions, perform)
    for _ in range(2):
        assert await dispatcher.consume(encode(_registered())) is None

    assert seen == [False, True]


@pytest.mark.parametrize(
    ("code", "dependency_down"), [(Code.UNAVAILABLE, True), (Code.ABORTED, False)]
)
async def test_failure_of_a_consumer_reports_whether_a_dependency_is_unavailable(
    posts: Posts, sessions: SessionVerifier, code: Code, dependency_down: bool
) -> None:
    posts.failure = ServiceError(Reason("FAILED", code), "Failed.")
    dispatcher = Dispatcher(
        "posts", [posts, Health({})], sessions, without_store(MemoryBus().publish)
    )

    failure = await dispatcher.consume(encode(_registered()))

    assert failure is not None
    assert (failure.retry, failure.dependency_down) == (True, dependency_down)


async def test_token_is_required_before_the_request_is_examined(bus: MemoryBus) -> None:
    error = await failure_of(bus, CREATE, a_call(b"\xff"))

    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "TOKEN_MISSING")


def test_wait_of_a_call_without_its_time_of_sending_is_not_counted() -> None:
    metrics = Statistics({}, {}).of("name")

    metrics.begin(0)
    assert sum(metrics.wait) == 0
    metrics.begin(time.time() - 2)
    metrics.begin(time.time() + 3_000)  # by a clock that is ahead

    assert sum(metrics.wait) == 2
    assert 1.9 < metrics.waited < 2.5


async def test_stream_ends_at_the_deadline_of_its_call() -> None:
    ended = asyncio.Event()

    async def stall(_request: object, _context: Context) -> AsyncIterator[str]:
        try:
            yield "first"
            await asyncio.Event().wait()
        finally:
            ended.set()

    context = Context(name="x", deadline=time.monotonic() + 0.1, traceparent=new_traceparent())
    responses = run_stream(stall, PingRequest(), context)

    assert await anext(responses) == "first"
    async with asyncio.timeout(2):
        with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
            await anext(responses)
        await ended.wait()


async def test_failure_after_a_nested_call_with_side_effects_has_an_unknown_outcome(
    bus: MemoryBus, posts: Posts, tokens: TokenMaker, sessions: SessionVerifier
) -> None:
    stub = PostsServiceStub(ServiceChannel(bus))

    class Nesting(Posts):
        @MessagePattern(PostsServiceBase.get_post)
        async def get_post(self, _request: GetPostRequest, _context: Context) -> GetPostResponse:
            await stub.create_post(CreatePostRequest(title="nested"))
            raise ServiceError(reasons.DATABASE_CONFLICT, "Later.")

    dispatcher = Dispatcher("posts", [Nesting(), Health({})], sessions, without_store(bus.publish))
    body = a_call(encode(GetPostRequest(id=POST_ID)), token=tokens.token("alice")).request
    reply = await reply_of(dispatcher, body)

    assert posts.seen == [("nested", "alice")]
    assert (reply.error.reason, reply.error.outcome) == ("DATABASE_CONFLICT", Outcome.UNKNOWN)


@pytest.mark.parametrize(("known", "replied"), [(0, 7), (6, 7), (7, 0), (8, 0)])
async def test_reply_carries_the_callers_revision_if_it_is_higher_than_that_of_the_request(
    known: int, replied: int, sessions: SessionVerifier, tokens: TokenMaker
) -> None:
    seen: list[int] = []
    bus = MemoryBus()
    stub = PostsServiceStub(ServiceChannel(bus))

    class Nesting(Posts):
        @MessagePattern(PostsServiceBase.create_post)
        async def create_post(
            self, _request: CreatePostRequest, context: Context
        ) -> CreatePostResponse:
            seen.append(context.caller_revision)
            context.raise_revision(7)
            return CreatePostResponse()

        @MessagePattern(PostsServiceBase.get_post)
        async def get_post(self, _request: GetPostRequest, context: Context) -> GetPostResponse:
            await stub.create_post(CreatePostRequest(title="nested"))
            seen.append(context.caller_revision)
            return GetPostResponse()

    call = Call.new(
        encode(GetPostRequest(id=POST_ID)),
        budget=5,
        access_token=tokens.token("alice"),
        caller_revision=known,
    )
    dispatcher = Dispatcher("posts", [Nesting(), Health({})], sessions, without_store(bus.publish))
    await bus.serve("posts", dispatcher.routes, dispatcher.answer)

    reply = await reply_of(dispatcher, call.request)
    result = await bus.call(GET, call)

    assert reply.caller_revision == result.caller_revision == replied
    assert seen == 2 * [known, max(known, 7)]


async def test_worker_without_one_of_its_handlers_does_not_start(sessions: SessionVerifier) -> None:
    class Fewer:
        @MessagePattern(PostsServiceBase.get_post)
        async def get_post(self, _request: GetPostRequest, _context: Context) -> GetPostResponse:
            return GetPostResponse()

    with pytest.raises(ContractMismatchError, match=r"PostsService\.CreatePost"):
        Dispatcher("posts", [Fewer()], sessions, without_store(MemoryBus().publish))


async def test_worker_with_a_handler_of_another_worker_does_not_start(
    posts: Posts, sessions: SessionVerifier
) -> None:
    with pytest.raises(ContractMismatchError, match=r"PostsServiceBase\.create_post"):
        Dispatcher("users", [posts], sessions, without_store(MemoryBus().publish))


def _registered() -> Event:
    data = encode(UserRegistered(user_id="1", username="alice"))
    return Event(id="e1", type="postbus.users.v1.UserRegistered", subject="1", data=data)


async def test_worker_reports_its_handlers_and_statistics(bus: MemoryBus, posts: Posts) -> None:
    stub = WorkerServiceStub(ServiceChannel(bus, worker="posts"))
    await failure_of(bus, CREATE, a_call(encode(CreatePostRequest(title="Hi"))))
    posts.failure = ServiceError(reasons.POST_NOT_FOUND, "No.")
    await failure_of(bus, GET, a_call(encode(GetPostRequest(id=POST_ID))))
    posts.failure = None
    await bus.call(GET, a_call(encode(GetPostRequest(id=POST_ID))))

    counted = await stub.get_statistics(GetStatisticsRequest())
    handlers = await stub.list_handlers(ListHandlersRequest())
    ping = await stub.ping(PingRequest())

    [get] = [each for each in counted.handlers if each.name == GET]
    assert (get.calls, get.errors, get.in_flight) == (2, {"NOT_FOUND": 1}, 0)
    assert sum(get.duration.counts) == sum(get.wait.counts) == 2
    assert len(get.duration.counts) == len(counted.bounds) + 1
    assert GET in handlers.methods
    assert handlers.events == ["postbus.users.v1.UserRegistered"]
    assert ping.instance == counted.instance == handlers.instance
    assert ping.instance.worker == "posts"


async def test_event_is_retried_while_a_dependency_is_unavailable(
    bus: MemoryBus, posts: Posts
) -> None:
    posts.failure = ServiceError(reasons.DATABASE_UNAVAILABLE, "Unavailable.")

    await bus.publish(_registered())

    async with asyncio.timeout(5):
        await posts.consumed.wait()
    assert posts.seen == ["alice"]
    assert bus.dead_letters.empty()


async def test_event_is_retried_after_an_unexpected_exception(bus: MemoryBus, posts: Posts) -> None:
    posts.failure = RuntimeError("bug")

    await bus.publish(_registered())

    async with asyncio.timeout(5):
        await posts.consumed.wait()
    assert posts.seen == ["alice"]


async def test_refused_event_is_a_dead_letter(bus: MemoryBus, posts: Posts) -> None:
    posts.failure = ServiceError(Reason("NONSENSE", Code.INVALID_ARGUMENT), "No.")

    await bus.publish(_registered())

    async with asyncio.timeout(5):
        body, reason = await bus.dead_letters.get()
    assert (decode(Event, body).subject, reason) == ("1", "NONSENSE")
    assert posts.seen == []


async def test_event_without_a_consumer_is_not_retried(
    posts: Posts, sessions: SessionVerifier
) -> None:
    dispatcher = Dispatcher(
        "posts", [posts, Health({})], sessions, without_store(MemoryBus().publish)
    )

    for body, reason in (
        (encode(Event(id="1", type="nonsense")), "UNKNOWN_EVENT"),
        (b"\xff", "MALFORMED_MESSAGE"),
    ):
        failure = await dispatcher.consume(body)
        assert failure is not None
        assert (failure.reason, failure.retry) == (reason, False)


async def test_flood_of_failing_events_writes_one_line(
    posts: Posts, sessions: SessionVerifier
) -> None:
    dispatcher = Dispatcher(
        "posts", [posts, Health({})], sessions, without_store(MemoryBus().publish)
    )
    event_type = _registered().type

    with capture_logs() as lines:
        for number in range(20):
            await dispatcher.consume(encode(Event(id="1", type=f"{number}" * 1_000)))
            await dispatcher.consume(b"\xff")
            await dispatcher.consume(encode(Event(id="1", type=event_type, data=b"\xff")))

    failed = [line for line in lines if line["event"] == "event.failed"]
    assert [line["event_type"] for line in failed] == ["0" * 64 + "...", event_type]
    refused = [line for line in lines if line["event"] == "security.bus_message_refused"]
    assert len(refused) == 60
    assert max(len(line.get("name", "")) for line in refused) == 67


async def test_event_with_a_version_beyond_63_bits_is_refused_at_once(
    posts: Posts, sessions: SessionVerifier
) -> None:
    dispatcher = Dispatcher(
        "posts", [posts, Health({})], sessions, without_store(MemoryBus().publish)
    )
    event = _registered()
    event.version = 2**63

    failure = await dispatcher.consume(encode(event))

    assert failure is not None
    assert (failure.reason, failure.retry) == ("MALFORMED_MESSAGE", False)
    event.version -= 1
    assert await dispatcher.consume(encode(event)) is None


async def test_flood_of_calls_that_fail_unexpectedly_writes_ten_lines(
    posts: Posts, sessions: SessionVerifier
) -> None:
    dispatcher = Dispatcher(
        "posts", [posts, Health({})], sessions, without_store(MemoryBus().publish)
    )
    posts.failure = RuntimeError("a fault")

    with capture_logs() as lines:
        for _ in range(20):
            await reply_of(dispatcher, a_call(encode(GetPostRequest(id=POST_ID))).request)

    assert [line["event"] for line in lines] == ["request.failed"] * 10


async def test_reply_beyond_the_limit_is_out_of_range(bus: MemoryBus, posts: Posts) -> None:
    posts.answer = GetPostResponse(post=Post(body="x" * 9_000_000))

    error = await failure_of(bus, GET, a_call(encode(GetPostRequest(id=POST_ID))))

    assert (error.code, error.reason) == (Code.OUT_OF_RANGE, "REPLY_TOO_LARGE")


@pytest.mark.parametrize("route", [GET, COUNTED_BY_ALL])
async def test_request_of_more_than_4_mib_is_refused_undecoded(
    posts: Posts, sessions: SessionVerifier, route: str
) -> None:
    dispatcher = Dispatcher(
        "posts", [posts, Health({})], sessions, without_store(MemoryBus().publish)
    )

    too_large = await reply_of(dispatcher, b"\xff" * (4 * 2**20 + 1), route)
    large = await reply_of(dispatcher, b"\xff" * (4 * 2**20), route)

    assert (too_large.error.code, too_large.error.reason) == (
        Code.RESOURCE_EXHAUSTED,
        "REQUEST_TOO_LARGE",
    )
    assert large.error.reason == "MALFORMED_MESSAGE"


async def test_token_of_a_revoked_session_is_refused(
    bus: MemoryBus, posts: Posts, tokens: TokenMaker
) -> None:
    token = tokens.token("alice", sid="gone")
    request = encode(CreatePostRequest(title="Hi"))
    await bus.call(CREATE, a_call(request, token=token))

    revoked = SessionsRevoked(user_id="alice", session_ids=["gone"])
    await bus.publish(Event(id="1", type="postbus.users.v1.SessionsRevoked", data=encode(revoked)))

    error = await failure_of(bus, CREATE, a_call(request, token=token))
    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "SESSION_REVOKED")
    assert (await failure_of(bus, GET, a_call(b"", token=token))).reason == "SESSION_REVOKED"
    assert posts.seen == [("Hi", "alice")]


async def test_tokens_are_refused_until_past_revocations_are_read(
    posts: Posts, tokens: TokenMaker, verifier: TokenVerifier
) -> None:
    sessions = SessionVerifier(MemoryBus(), verifier)
    dispatcher = Dispatcher(
        "posts", [posts, Health({})], sessions, without_store(MemoryBus().publish)
    )
    request = encode(GetPostRequest(id=POST_ID))

    refused = await reply_of(dispatcher, a_call(request, token=tokens.token("alice")).request)
    public = await reply_of(dispatcher, a_call(request).request)

    assert (refused.error.code, refused.error.reason) == (Code.UNAVAILABLE, "SESSIONS_UNKNOWN")
    assert refused.error.retry_after == timedelta(seconds=1)
    assert public == Reply(payload=b"")


def test_worker_with_a_consumer_of_another_message_does_not_start(
    sessions: SessionVerifier,
) -> None:
    class Wrong(Posts):
        @EventPattern(Post)
        async def wrong(self, _event: Post, _context: Context) -> None:
            """Never called."""

    with pytest.raises(ContractMismatchError, match="Post is not an event"):
        Dispatcher("posts", [Wrong(), Health({})], sessions, without_store(MemoryBus().publish))


def test_worker_with_two_handlers_of_a_method_does_not_start(sessions: SessionVerifier) -> None:
    with pytest.raises(ContractMismatchError, match="CreatePost has two handlers"):
        Dispatcher(
            "posts", [Posts(), Posts(), Health({})], sessions, without_store(MemoryBus().publish)
        )


async def test_running_operation_is_not_executed_again(
    tokens: TokenMaker, sessions: SessionVerifier
) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    class Slow(Posts):
        @MessagePattern(PostsServiceBase.create_post)
        async def create_post(
            self, _request: CreatePostRequest, _context: Context
        ) -> CreatePostResponse:
            begun.set()
            await finish.wait()
            return CreatePostResponse()

    dispatcher = Dispatcher(
        "posts", [Slow(), Health({})], sessions, without_store(MemoryBus().publish)
    )
    body = Call.new(
        encode(CreatePostRequest(title="Once")),
        budget=5,
        access_token=tokens.token("alice"),
        operation_id="the same",
    ).request
    first = asyncio.create_task(reply_of(dispatcher, body, CREATE))
    await begun.wait()
    second = await reply_of(dispatcher, body, CREATE)
    finish.set()

    assert (second.error.code, second.error.reason) == (Code.ABORTED, "OPERATION_RUNNING")
    assert second.error.outcome == Outcome.UNKNOWN
    assert betterproto.which_one_of(await first, "result")[0] == "payload"
    third = await reply_of(dispatcher, body, CREATE)
    assert betterproto.which_one_of(third, "result")[0] == "payload"
