"""Addresses that lead to servers of another kind: an error that names cause and setting."""

import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from shared.bus.amqp import broker_connection, connect
from shared.data.mongo_database import open_mongo
from shared.data.postgres_sessions import open_postgres
from shared.errors import Code, NotReadyError, ServiceError
from shared.runtime.worker import Health
from tests.other_servers import KINDS, Serve, other_server, says

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """pymongo leaves sockets that are being opened at the end of a client to the collector."""
    yield
    gc.collect()


async def refused(serve: Serve, use: Callable[[int], Awaitable[object]]) -> str:
    """Return the cause of UNAVAILABLE, which a use of the server raises."""
    async with other_server(serve) as (port, accepted):
        with pytest.raises(ServiceError) as raised:
            await use(port)
        assert accepted
    assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    return str(raised.value.__cause__)


async def causes(use: Callable[[int], Awaitable[object]]) -> dict[str, str]:
    """Return the cause of each kind of server."""
    found = await asyncio.gather(*(refused(serve, use) for serve in KINDS.values()))
    return dict(zip(KINDS, found, strict=True))


async def as_postgresql(port: int) -> None:
    url = f"postgresql://user:hunter2@127.0.0.1:{port}/x?sslmode=disable"
    async with open_postgres(SecretStr(url)) as postgres:
        await postgres.stored_revision()


@pytest.mark.parametrize("parameters", ["", "?sslmode=disable"])
async def test_server_that_is_not_postgresql_is_unavailable_with_its_cause(
    parameters: str,
) -> None:
    async def use(port: int) -> None:
        url = f"postgresql://user:hunter2@127.0.0.1:{port}/x{parameters}"
        async with open_postgres(SecretStr(url)) as postgres:
            await postgres.stored_revision()

    began = time.monotonic()
    found = await causes(use)

    assert time.monotonic() - began < 8
    assert all(cause.endswith("Check POSTBUS_POSTGRES_URL.") for cause in found.values())
    assert "hunter2" not in json.dumps(found)
    if parameters:
        for kind in ("HTTP", "zeros", "zeros without end", "letters without end", "slow zeros"):
            assert "the server is not PostgreSQL" in found[kind]


@pytest.mark.parametrize(
    ("first", "cause"),
    [
        (b"E\0\1\0\1" + bytes(2**16), "the server is not PostgreSQL"),
        (b"E\0\0\0\7" + bytes(2**16), "the server is not PostgreSQL"),
        (b"D\0\0\0\x08" + bytes(2**16), "the server is not PostgreSQL"),
        (b"E\0\0\0\x15SFATAL\0C57P03\0M\0\0", "PostgreSQL refuses connections"),
    ],
)
async def test_first_message_of_postgresql_is_bounded(first: bytes, cause: str) -> None:
    assert cause in await refused(says(first), as_postgresql)


async def test_text_of_a_server_is_shortened() -> None:
    fields = b"SFATAL\0C28000\0M" + b"x" * 60_000 + b"\0\0"
    error = b"E" + (len(fields) + 4).to_bytes(4) + fields

    cause = await refused(says(error), as_postgresql)

    assert cause.startswith("PostgreSQL refuses connections: xxx")
    assert len(cause) < 500


async def test_server_that_is_not_mongodb_is_unavailable_with_its_cause() -> None:
    async def use(port: int) -> None:
        url = f"mongodb://user:hunter2@127.0.0.1:{port}/x"
        async with open_mongo(SecretStr(url)) as mongo:
            await mongo.ping()

    found = await causes(use)

    assert all(cause.startswith("MongoDB cannot be reached: ") for cause in found.values())
    assert all(cause.endswith("Check POSTBUS_MONGO_URL.") for cause in found.values())
    assert "hunter2" not in json.dumps(found)


async def attempts(serve: Serve, scheme: str) -> float:
    """Connect until the second log line; return the seconds until the bus has stopped."""
    async with other_server(serve) as (port, accepted):
        url = f"{scheme}://user:hunter2@127.0.0.1:{port}/"
        async with connect(SecretStr(url), "test"):
            async with asyncio.timeout(15):
                while len(accepted) < 2:  # noqa: ASYNC110  # polls
                    await asyncio.sleep(0.02)
            began = time.monotonic()
        return time.monotonic() - began


@pytest.mark.parametrize(
    ("scheme", "kinds"), [("amqp", [*KINDS]), ("amqps", ["HTTP", "silent", "zeros without end"])]
)
async def test_server_that_is_not_rabbitmq_is_named_in_the_log(
    scheme: str, kinds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_connection, "_CONNECT_TIMEOUT", 1)
    with capture_logs() as lines:
        stops = await asyncio.gather(*(attempts(KINDS[each], scheme) for each in kinds))

    assert max(stops) < 2
    assert {line["event"] for line in lines} == {"bus.not_connected"}
    assert {line["setting"] for line in lines} == {"POSTBUS_AMQP_URL"}
    assert len({line["broker"] for line in lines}) == len(kinds)
    assert all(0 < len(line["error"]) <= 500 for line in lines)
    assert "hunter2" not in json.dumps(lines)
    if scheme == "amqp":
        errors = " ".join(line["error"] for line in lines)
        assert "the server does not speak AMQP 0-9-1" in errors
        assert "no reply within 1 seconds" in errors
        assert "UnmarshalingException" in errors or "InvalidFrameError" in errors


async def test_unusable_option_of_the_address_is_named_in_the_log() -> None:
    """aiormq then raises another error than those of an unavailable broker."""
    with capture_logs() as lines:
        async with connect(SecretStr("amqps://user:hunter2@127.0.0.1:1/?cadata=x"), "test"):
            async with asyncio.timeout(5):
                while len(lines) < 2:  # noqa: ASYNC110  # polls
                    await asyncio.sleep(0.02)

    assert {(line["event"], line["setting"]) for line in lines} == {
        ("bus.not_connected", "POSTBUS_AMQP_URL")
    }
    assert "base64" in lines[0]["error"]


async def test_dependency_whose_error_changes_with_each_check_writes_ten_lines() -> None:
    texts = (f"Got response id {number}." for number in range(30))

    async def probe() -> None:
        raise NotReadyError(next(texts))

    health = Health({"mongodb": probe})
    with capture_logs() as lines:
        for _ in range(30):
            [part] = await health.check_parts()

    assert part.message == "Got response id 29."
    assert [line["event"] for line in lines] == ["dependency.not_ready"] * 10
