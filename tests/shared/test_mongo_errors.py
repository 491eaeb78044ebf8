"""Errors of MongoDB: by error code, never by the driver's text."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from bson.errors import InvalidDocument
from pydantic import SecretStr
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    DuplicateKeyError,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
    WTimeoutError,
)

from shared.context import Context
from shared.data.mongo_database import Mongo, open_mongo
from shared.errors import Code, Outcome, ServiceError
from shared.outbox import mongo_errors
from shared.outbox.mongo_errors import driver_errors, service_error
from shared.outbox.mongo_unit_of_work import MongoUnitOfWork
from shared.outbox.unit_of_work import current_unit_of_work
from tests.mongod import Mongod, run_mongod
from tests.notes import Notes, an_operation, mongo_notes

Unique = Callable[[str], str]
SECRET = "the value of a document"  # noqa: S105  # not a password

UNAVAILABLE = (Code.UNAVAILABLE, "DATABASE_UNAVAILABLE", Outcome.NO_EFFECT)
NOT_CONFIRMED = (Code.UNAVAILABLE, "DATABASE_UNAVAILABLE", Outcome.UNKNOWN)
CONFLICT = (Code.ABORTED, "DATABASE_CONFLICT", Outcome.NO_EFFECT)
TAKEN = (Code.ALREADY_EXISTS, "ALREADY_EXISTS", Outcome.NO_EFFECT)
INTERNAL = (Code.INTERNAL, "INTERNAL", Outcome.UNKNOWN)
EXPECTED = {
    **dict.fromkeys((6, 7, 24, 43, 46, 50, 70, 89, 91, 133, 134, 189, 202, 208), UNAVAILABLE),
    **dict.fromkeys((237, 262, 365, 9001, 10058, 10107, 11600, 11601, 11602), UNAVAILABLE),
    **dict.fromkeys((13435, 13436, 14031), UNAVAILABLE),
    **dict.fromkeys((136, 175, 211, 279, 317, 355, 384, 46841), UNAVAILABLE),
    **dict.fromkeys((11, 13, 18, 20, 76, 334, 391, 8000), UNAVAILABLE),
    **dict.fromkeys((64, 75, 79, 100), NOT_CONFIRMED),
    **dict.fromkeys((112, 225, 239, 244, 246, 251, 290), CONFLICT),
    **dict.fromkeys((11000, 11001, 12582), TAKEN),
    **dict.fromkeys((1, 2, 9, 26, 27, 40, 66, 72, 121, 263, 10334, 17419, 99999), INTERNAL),
}


def failure(code: int) -> OperationFailure:
    return OperationFailure(SECRET, code, {"errmsg": SECRET, "code": code, "keyValue": SECRET})


def seen(error: ServiceError) -> tuple[int, str, int]:
    return error.code, error.reason, error.outcome


@pytest.mark.parametrize("code", EXPECTED)
def test_each_error_code_has_its_answer(code: int) -> None:
    assert seen(service_error(failure(code))) == EXPECTED[code]


def test_table_has_no_code_that_is_not_tested() -> None:
    assert set(mongo_errors._TABLE) <= set(EXPECTED)


@pytest.mark.parametrize("code", [code for code, row in EXPECTED.items() if row == UNAVAILABLE])
def test_failed_commit_has_an_unknown_outcome(code: int) -> None:
    assert seen(service_error(failure(code), committing=True)) == NOT_CONFIRMED


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ServerSelectionTimeoutError(SECRET), UNAVAILABLE),
        (WaitQueueTimeoutError(SECRET), (Code.RESOURCE_EXHAUSTED, "DATABASE_BUSY", 0)),
        (AutoReconnect(SECRET), NOT_CONFIRMED),
        (NetworkTimeout(SECRET), NOT_CONFIRMED),
        (NotPrimaryError(SECRET, {"code": 10107}), UNAVAILABLE),
        (DuplicateKeyError(SECRET, 11000), TAKEN),
        (WriteConcernError(SECRET, 91), NOT_CONFIRMED),
        (WTimeoutError(SECRET, 64), NOT_CONFIRMED),
        (BulkWriteError({"writeErrors": [{"code": 11000, "errmsg": SECRET}]}), TAKEN),
        (BulkWriteError({"writeConcernErrors": [{"code": 64}]}), NOT_CONFIRMED),
        (PyMongoError(SECRET), INTERNAL),
        (InvalidDocument(SECRET), INTERNAL),
    ],
    ids=lambda each: type(each).__name__,
)
def test_errors_of_the_driver_have_an_answer_too(
    error: Exception, expected: tuple[int, str, int]
) -> None:
    raised = service_error(error)

    assert (raised.code, raised.reason) == expected[:2]
    assert raised.outcome == (expected[2] or Outcome.NO_EFFECT)


def test_connection_lost_in_a_transaction_has_no_effect_before_the_commit() -> None:
    lost = AutoReconnect(SECRET)
    lost._add_error_label("TransientTransactionError")

    assert seen(service_error(lost)) == UNAVAILABLE


@pytest.mark.parametrize(
    ("code", "event"),
    [
        (2, "database.failed"),
        (13, "database.unavailable"),
        (18, "database.unavailable"),
        (20, "database.unavailable"),
        (99999, "database.failed"),
    ],
)
def test_code_is_logged_and_the_text_of_the_driver_is_not(code: int, event: str) -> None:
    mongo_errors._log._written.clear()
    with (
        structlog.testing.capture_logs() as logs,
        pytest.raises(ServiceError) as raised,
        driver_errors(),
    ):
        raise failure(code)

    [line] = logs
    assert (line["event"], line["log_level"], line["code"]) == (event, "error", code)
    assert SECRET not in str(logs) + str(raised.value)
    assert not isinstance(raised.value.__cause__, PyMongoError)
    assert raised.value.__suppress_context__


def test_remedy_of_a_wrong_configuration_is_logged_once_in_ten_seconds() -> None:
    mongo_errors._log._written.clear()
    with structlog.testing.capture_logs() as logs:
        for _ in range(100):
            service_error(failure(20))

    assert [line["cause"] for line in logs] == [
        "MongoDB reports error 20: start mongod with --replSet, because transactions need a"
        " replica set."
    ]


def a_context(seconds: float) -> Context:
    return Context(name="test", deadline=time.monotonic() + seconds, traceparent="")


@pytest.fixture
async def notes(mongo_url: str, unique: Unique) -> AsyncIterator[Notes]:
    async with mongo_notes(mongo_url, unique) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """A server with test commands."""
    with run_mongod(tmp_path_factory.mktemp("mongod")) as running:
        yield running


@asynccontextmanager
async def failing(server: Mongod, times: int, **failure: Any) -> AsyncIterator[Mongo]:
    """Let the next commands of a server fail."""
    point = {"configureFailPoint": "failCommand", "mode": {"times": times}, "data": failure}
    async with open_mongo(SecretStr(server.url())) as operator:
        admin = operator.database.client.admin
        await operator.database["notes"].insert_one({})
        await operator.create_indexes()
        await admin.command(point)
        try:
            async with open_mongo(SecretStr(server.url())) as mongo:
                yield mongo
        finally:
            await admin.command({"configureFailPoint": "failCommand", "mode": "off"})


async def write(mongo: Mongo, name: str, runs: list[int]) -> bytes:
    async def handler() -> bytes:
        runs.append(1)
        unit = current_unit_of_work()
        assert isinstance(unit, MongoUnitOfWork)
        async with unit.join() as session:
            with driver_errors():
                await mongo.database["notes"].insert_one({}, session=session)
        return b"done"

    with a_context(1.5):
        return (await mongo.perform(an_operation(name), handler)).reply


@pytest.mark.parametrize("code", [112, 246, 251, 10107])
async def test_transaction_that_the_server_has_aborted_runs_again(
    code: int, server: Mongod, unique: Unique
) -> None:
    labels = {"errorLabels": ["TransientTransactionError"]}
    runs: list[int] = []
    async with failing(server, 1, failCommands=["insert"], errorCode=code, **labels) as mongo:
        reply = await write(mongo, unique("write"), runs)

    assert (reply, len(runs)) == (b"done", 2)


@pytest.mark.parametrize("code", [6, 50, 64, 14031])
async def test_commit_that_fails_has_an_unknown_outcome(
    code: int, server: Mongod, unique: Unique
) -> None:
    runs: list[int] = []
    async with failing(server, 1000, failCommands=["commitTransaction"], errorCode=code) as mongo:
        with pytest.raises(ServiceError) as raised:
            await write(mongo, unique("write"), runs)

    assert seen(raised.value) == NOT_CONFIRMED
    assert len(runs) == 1


async def test_conflict_at_the_end_of_the_budget_is_aborted_without_effect(notes: Notes) -> None:
    mongo = notes.store

    async def handler() -> bytes:
        error = OperationFailure(SECRET, 112)
        error._add_error_label("TransientTransactionError")
        raise error

    began = time.monotonic()
    with a_context(1), pytest.raises(ServiceError) as raised:
        await mongo.perform(an_operation("conflict"), handler)

    assert seen(raised.value) == CONFLICT
    assert time.monotonic() - began < 0.85  # the rest is for the answer


async def test_transaction_without_a_server_fails_within_a_second(notes: Notes) -> None:
    mongo, failures = notes.store, 0

    async def handler() -> bytes:
        nonlocal failures
        failures += 1
        error = NotPrimaryError(SECRET, {"code": 10107})
        error._add_error_label("TransientTransactionError")
        raise error

    async with asyncio.timeout(2):
        with a_context(30), pytest.raises(ServiceError) as raised:
            await mongo.perform(an_operation("lost"), handler)

    assert seen(raised.value) == UNAVAILABLE
    assert failures > 5


async def test_unknown_commit_at_the_end_of_the_budget_is_unavailable(
    notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(_session: AsyncClientSession) -> None:
        raise PyMongoError(SECRET, error_labels=["UnknownTransactionCommitResult"])

    monkeypatch.setattr(AsyncClientSession, "commit_transaction", lose)

    async def handler() -> bytes:
        await notes.add("unknown")
        return b""

    with a_context(0.6), pytest.raises(ServiceError) as raised:
        await notes.store.perform(an_operation("unknown"), handler)

    assert seen(raised.value) == NOT_CONFIRMED


async def test_values_of_documents_never_reach_a_log(notes: Notes) -> None:
    mongo = notes.store
    assert isinstance(mongo, Mongo)
    await mongo.database["unique"].create_index("value", unique=True)

    async def write(value: object) -> None:
        with driver_errors():
            await mongo.database["unique"].insert_one({"value": value})

    await write(SECRET)
    with structlog.testing.capture_logs() as logs:
        for value in (SECRET, {"$bad": SECRET}, object()):
            try:
                await write(value)
            except ServiceError as error:
                structlog.get_logger().error("request.failed", exc_info=error)
        processed = [structlog.processors.format_exc_info(None, "", dict(line)) for line in logs]

    assert len(processed) >= 2
    assert SECRET not in str(processed)
