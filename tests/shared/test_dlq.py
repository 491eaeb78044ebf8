"""`just dlq`, on a real broker."""

import argparse
import asyncio
import json
import os
import struct
from datetime import UTC, datetime

import aio_pika
import pytest
from aiormq.exceptions import PublishError
from pydantic import SecretStr
from structlog.testing import capture_logs

from postbus.bus.v1 import Event
from postbus.posts.v1 import PostDeleted
from shared.bus.amqp import connect
from shared.bus.message_bus import Failure
from shared.wire import decode, encode
from tests.buses import opened_bus
from tests.conftest import new_vhost
from tools import dlq
from tools.broker_queues import open_connection, state_of

TYPE = "postbus.posts.v1.PostDeleted"
QUEUE = f"users.{TYPE}"
DEAD = f"{QUEUE}.dead"
TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


async def run(url: str, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    dlq.add_arguments(parser)
    management = os.environ["POSTBUS_AMQP_MANAGEMENT_URL"]
    return await dlq.run(url, management, parser.parse_args(arguments))


async def test_dead_letters_are_listed_shown_replayed_and_dropped(
    run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with new_vhost(f"{run_id}_dlq") as url:
        await make_dead_letters(url, "e1", "e2", "e3")

        assert await run(url) == 0
        listed = capsys.readouterr().out
        assert DEAD in listed
        assert "3" in listed
        assert "NONSENSE" in listed

        assert await run(url, "show", DEAD, "--limit", "1") == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["id"], shown["reason"], shown["attempts"]) == ("e1", "NONSENSE", 1)
        assert (shown["message"], shown["data"]) == ("No.", {"postId": "e1"})

        assert await run(url, "replay", DEAD, "e2") == 0
        assert await ids_in(url, QUEUE) == ["e2"]
        assert await run(url, "drop", DEAD, "e3", "--yes") == 0
        assert await run(url, "drop", DEAD, "unknown", "--yes") == 1
        assert await ids_in(url, DEAD) == ["e1"]
        assert await run(url, "show", "nonsense.dead") == 1
        assert await run(url, "drop", QUEUE, "--yes") == 1

        async with await aio_pika.connect(url) as connection:
            await (await connection.channel()).queue_delete(QUEUE)
        with pytest.raises(PublishError):
            await run(url, "replay", DEAD, "e1")
        assert await ids_in(url, DEAD) == ["e1"]


def deep_table() -> bytes:
    value = b"V"
    for _ in range(5000):
        value = b"A" + struct.pack(">I", len(value)) + value
    return b"\1a" + value


def with_headers(table: bytes) -> bytes:
    return b"\x20\x10" + struct.pack(">I", len(table)) + table + b"\4test"


PROPERTIES = {
    "time in the headers beyond the year 9999": with_headers(b"\1tT" + b"\x7f" * 8),
    "time beyond the year 9999": b"\0\x50" + b"\x7f" * 8 + b"\4test",
    "headers without end": with_headers(deep_table()),
    "header with a name in Latin-1": with_headers(b"\2\xff\xfeV"),
    "deaths of another type": with_headers(b"\7x-deathV"),
    "deaths that are no tables": with_headers(b"\7x-deathA\0\0\0\2VV"),
    "time of another type": with_headers(b"\x0ex-postbus-timeI\0\0\0\1"),
    "type in Latin-1": b"\0\x30\2\xff\xfe\4test",
}


async def test_dead_letters_with_any_properties_are_listed_shown_replayed_and_dropped(
    run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with new_vhost(f"{run_id}_odd") as url:
        await make_dead_letters(url, "e1")
        async with opened_bus(url, "users") as bus:
            assert bus._session is not None
            dead = await bus._session.publishers.open("postbus.dead.users")
            for header in PROPERTIES.values():
                dead.publish("postbus.dead.users", QUEUE, header, encode(Event(id="odd")))
            letters = 1 + len(PROPERTIES)
            async with await open_connection(url) as connection, asyncio.timeout(5):
                while await state_of(connection, DEAD) != (letters, 0):  # noqa: ASYNC110  # polls
                    await asyncio.sleep(0.02)

        assert await run(url) == 0
        assert f"{letters}  {DEAD}" in capsys.readouterr().out
        assert await run(url, "show", DEAD) == 0
        assert capsys.readouterr().out.count('"id"') == letters
        assert await run(url, "replay", DEAD) == 0
        assert await run(url, "drop", DEAD, "--yes") == 0
        assert f"{letters} returned to {QUEUE}" in capsys.readouterr().out


async def test_flood_of_dead_letters_writes_one_line(run_id: str) -> None:
    async with new_vhost(f"{run_id}_dead") as url:
        with capture_logs() as lines:
            await make_dead_letters(url, *map(str, range(5)))

    assert [line["event"] for line in lines if line["log_level"] == "error"] == [
        "event.dead_lettered"
    ]


async def test_delayed_events_are_listed_and_released_at_once(
    run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with new_vhost(f"{run_id}_delayed") as url:
        await delay_events(url, "e1", "e2", "e3")

        assert await run(url) == 0
        listed = capsys.readouterr().out
        assert f"       3  {QUEUE}  delayed (oldest event: 2026-01-02T03:04:05+00:00)" in listed

        assert await run(url, "release", "users.other") == 1
        assert await run(url, "release", QUEUE) == 0
        assert capsys.readouterr().out.splitlines() == [
            "dlq: no delayed events of users.other",
            f"dlq: 3 released to {QUEUE}",
        ]
        async with await aio_pika.connect(url) as connection:
            source = await (await connection.channel()).get_queue(QUEUE, ensure=False)
            messages = [await source.get() for _ in range(3)]
        assert [decode(Event, message.body).id for message in messages] == ["e1", "e2", "e3"]
        assert {message.headers["x-postbus-attempt"] for message in messages} == {2}
        assert {message.user_id for message in messages} == {"users"}
        assert await run(url, "release") == 0
        assert capsys.readouterr().out == "dlq: no delayed events\n"


async def test_delayed_event_without_a_consumer_is_not_lost(
    run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with new_vhost(f"{run_id}_kept") as url:
        await delay_events(url, "e1")
        async with await aio_pika.connect(url) as connection:
            await (await connection.channel()).queue_delete(QUEUE)

        capsys.readouterr()
        assert await run(url, "release") == 1

        assert capsys.readouterr().out == f"dlq: 1 still delayed: there is no queue {QUEUE}\n"
        assert await ids_in(url, "users.delay.600000") == ["e1"]


async def test_queues_without_a_consumer_are_listed_with_their_length(
    run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with new_vhost(f"{run_id}_idle") as url, connect(SecretStr(url), "users") as users:
        await users.wait_ready()
        await users.subscribe([TYPE], accept, queue=QUEUE)
        capsys.readouterr()
        assert await run(url) == 0
        assert capsys.readouterr().out == (
            "dlq: no dead letters, no delayed events, and every queue has a consumer\n"
        )

        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            left = await channel.declare_queue("users.left", durable=True)
            message = aio_pika.Message(b"", user_id="users")
            await channel.default_exchange.publish(message, left.name)
            assert await run(url) == 0

    assert capsys.readouterr().out == "       1  users.left  has no consumer\n"


async def test_queue_that_a_former_consumer_has_left_is_removed(
    run_id: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_vhost(f"{run_id}_left") as url:
        async with connect(SecretStr(url), "users") as users:
            await users.wait_ready()
            await users.subscribe([TYPE], accept, queue=QUEUE)
            assert await run(url, "remove", QUEUE, "--yes") == 1
        await make_dead_letters(url, "e1")
        capsys.readouterr()
        for other in (DEAD, "users.delay.1000", "users.unknown"):
            assert await run(url, "remove", other, "--yes") == 1
        monkeypatch.setattr("builtins.input", lambda question: "n" if "1 dead" in question else "")
        assert await run(url, "remove", QUEUE) == 1
        assert await ids_in(url, DEAD) == ["e1"]
        assert await run(url, "remove", QUEUE, "--yes") == 0
        assert await run(url, "remove", QUEUE, "--yes") == 1

    assert capsys.readouterr().out.splitlines() == [
        *(
            f"dlq: there is no consumer's queue {each}: see `just dlq`"
            for each in (DEAD, "users.delay.1000", "users.unknown")
        ),
        f"dlq: {QUEUE} is deleted",
        f"dlq: there is no consumer's queue {QUEUE}: see `just dlq`",
    ]


async def test_unavailable_management_api_is_named(
    vhost: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTBUS_AMQP_MANAGEMENT_URL", "http://127.0.0.1:1")

    assert await run(vhost) == 1

    assert "dlq: the management API of RabbitMQ is unavailable" in capsys.readouterr().out


async def accept(_body: bytes) -> Failure | None:
    return None


async def delay_events(url: str, *ids: str) -> None:
    """Publish events that fail in their consumer, and stop the consumer."""

    async def fail(_body: bytes) -> Failure | None:
        return Failure(reason="BUSY", message="Busy.", retry=True)

    async with (
        connect(SecretStr(url), "posts") as posts,
        connect(SecretStr(url), "users", delays=(600,)) as users,
        await aio_pika.connect(url) as connection,
    ):
        await posts.wait_ready()
        subscription = await users.subscribe([TYPE], fail, queue=QUEUE)
        for id_ in ids:
            await posts.publish(Event(id=id_, type=TYPE, time=TIME))
        channel = await connection.channel()
        waiting = await channel.get_queue("users.delay.600000")
        async with asyncio.timeout(10):
            while (await waiting.declare()).message_count != len(ids):  # noqa: ASYNC110  # polls
                await asyncio.sleep(0.02)
        await subscription.cancel()


async def make_dead_letters(url: str, *ids: str) -> None:
    """Publish events that fail in their consumer."""

    async def refuse(_body: bytes) -> Failure | None:
        return Failure(reason="NONSENSE", message="No.", retry=False)

    async with connect(SecretStr(url), "posts") as bus, connect(SecretStr(url), "users") as users:
        await bus.wait_ready()
        subscription = await users.subscribe([TYPE], refuse, queue=QUEUE)
        for id_ in ids:
            data = encode(PostDeleted(post_id=id_))
            await bus.publish(Event(id=id_, type=TYPE, subject=id_, data=data))
        while len(await ids_in(url, DEAD)) < len(ids):
            pass
        await subscription.cancel()


async def ids_in(url: str, queue: str) -> list[str]:
    async with await aio_pika.connect(url) as connection:
        source = await (await connection.channel()).get_queue(queue, ensure=False)
        ids = []
        while message := await source.get(fail=False):
            ids.append(decode(Event, message.body).id)
        return ids
