"""No decision compares the clocks of two processes, except about access tokens, with a leeway."""

import ast
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from structlog.testing import capture_logs

from gateway import health
from postbus.bus.v1 import CheckResponse, Code, Reply, Request
from shared.bus import Dispatcher
from shared.bus.memory import MemoryBus
from shared.bus.message_bus import RpcHandler
from shared.outbox.unit_of_work import without_store
from shared.runtime.session_verifier import SessionVerifier
from shared.runtime.worker import Health
from shared.wire import decode, encode
from tests.shared.test_dispatch import CREATE, Posts
from tests.tokens import TokenMaker
from tools.paths import ROOT, SERVICES

SHOWN: Final = "shown to people; nothing is decided by it"
TOKENS: Final = "the times of access tokens, with a leeway of 30 seconds"
WITHIN: Final = "compared with a time of the same process only"
STORED: Final = "never without a reply of the database"
ORDER: Final = "orders items; a version or an id decides which of two is newer"

CLOCKS: Final = {
    "gateway/health.py Health._check_worker": "measures the difference, for the log",
    "gateway/operator_routes.py security_txt_routes.security_txt": SHOWN,
    "gateway/rate_limits.py RateLimits.__init__": WITHIN,
    "gateway/rate_storage.py BoundedStorage.get_expiry": WITHIN,
    "posts/stored_times.py now": ORDER,
    "shared/bus/amqp/failed_events.py FailedEvents._destination": SHOWN,
    "shared/bus/client.py publish": SHOWN,
    "shared/bus/call.py Call.new": "for callees of the previous release",
    "shared/bus/call.py budget_of": "for callers of the previous release",
    "shared/bus/handler_metrics.py HandlerMetrics.begin": "statistics",
    "shared/bus/handler_metrics.py WorkerServiceHandlers.__init__": SHOWN,
    "shared/bus/request_verification.py RequestVerification._log_skew": (
        "measures the difference, for the log"
    ),
    "shared/access_tokens.py Caller.remaining": TOKENS,
    "shared/access_tokens.py TokenVerifier._log_clock_skew": "measures the difference, for the log",
    "shared/data/mongo_collection.py Collection.database_time": STORED,
    "shared/outbox/mongo_inbox.py MongoInbox._now": STORED,
    "shared/runtime/worker.py Health.check": "for the gateway, which measures the difference",
    "users/account_handlers.py _new_user": SHOWN,
    "users/account_handlers.py _with_derived": SHOWN,
    "users/session_repository.py SessionRepository.expiry": SHOWN,
    "users/token_signer.py TokenSigner.sign": TOKENS,
}
"""Every place of the sources that reads the clock of its process, with the reason."""


def readings(node: ast.AST, name: str = "") -> Iterator[str]:
    """Yield the function of each expression that reads the clock."""
    for child in ast.iter_child_nodes(node):
        inner = name
        match child:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                inner = f"{name}.{child.name}".removeprefix(".")
            case ast.Attribute(value=ast.Name(id="time"), attr="time"):
                yield name
            case ast.Attribute(value=ast.Name(id="datetime"), attr="now" | "utcnow" | "today"):
                yield name
        yield from readings(child, inner)


def test_every_place_that_reads_the_clock_has_a_reason() -> None:
    """For a duration use time.monotonic(), and for a stored time the clock of the database."""
    found = {
        f"{file.relative_to(ROOT / package / 'src')} {function}".strip()
        for package in ("shared", *SERVICES)
        for file in (ROOT / package / "src").rglob("*.py")
        for function in readings(ast.parse(file.read_text()))
    }

    assert sorted(found) == sorted(CLOCKS)


def answering(clock: timedelta | None) -> RpcHandler:
    """Return a worker with a clock ahead by `clock`; None is a worker of the previous release."""

    async def answer(_route: str, _body: bytes, _service: str) -> bytes:
        response = CheckResponse()
        if clock is not None:
            response.time = datetime.now(UTC) + clock
        return encode(Reply(payload=encode(response)))

    return answer


@pytest.mark.parametrize(
    ("ahead", "logged"), [(29, []), (-29, []), (31, [31.0]), (-600, [-600.0]), (None, [])]
)
async def test_clock_of_a_worker_that_differs_by_30_seconds_is_logged_once_a_minute(
    sessions: SessionVerifier, ahead: float | None, logged: list[float]
) -> None:
    bus = MemoryBus()
    clock = None if ahead is None else timedelta(seconds=ahead)
    await bus.serve("posts", ["postbus.bus.v1.HealthService.Check.posts"], answering(clock))
    checked = health.Health(bus, sessions)

    with capture_logs() as lines:
        for _ in range(3):
            assert {part.name: part.ready for part in await checked._check()}["posts"]
    [log] = [checked._log]
    log._clock = lambda: 10**9.0
    with capture_logs() as later:
        await checked._check()

    for found in (lines, later):
        skews = [line for line in found if line["event"] == "clock.skew"]
        assert [round(line["seconds"]) for line in skews] == logged
        assert {line["process"] for line in skews} <= {"posts"}


@pytest.fixture
async def sessions(verifier: object) -> SessionVerifier:
    """A verifier that has received no revocation."""
    sessions = SessionVerifier(MemoryBus(), verifier)  # type: ignore[arg-type]  # a TokenVerifier
    await sessions.run()
    return sessions


@pytest.mark.parametrize(
    ("sent", "logged"), [(-29, []), (29, []), (-600, [-600]), (600, [600]), (None, [])]
)
async def test_worker_that_refuses_a_token_by_a_wrong_clock_logs_the_difference(
    sessions: SessionVerifier, tokens: TokenMaker, sent: float | None, logged: list[int]
) -> None:
    """`sent` is the time of the sender, which has accepted the token, by its own clock."""
    dispatcher = Dispatcher(
        "posts", [Posts(), Health({})], sessions, without_store(MemoryBus().publish)
    )
    expired = tokens.token("alice", lifetime=timedelta(seconds=-60))
    request = Request(access_token=expired, budget_ms=5000)
    if sent is not None:
        request.sent_unix_ms = int((datetime.now(UTC).timestamp() + sent) * 1000)

    with capture_logs() as lines:
        for _ in range(3):
            reply = await dispatcher.answer(CREATE, encode(request), "gateway")  # type: ignore[misc]  # no stream
            error = decode(Reply, reply).error
            assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "TOKEN_EXPIRED")

    skews = [line for line in lines if line["event"] == "clock.skew"]
    assert [round(line["seconds"]) for line in skews] == logged
