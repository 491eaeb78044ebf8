"""`just dlq`, on a real broker."""

import argparse
import json

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
from tests.conftest import new_vhost
from tools import dlq

TYPE = "postbus.posts.v1.PostDeleted"
QUEUE = f"users.{TYPE}"
DEAD = f"{QUEUE}.dead"


async def run(url: str, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    dlq.add_arguments(parser)
    return await dlq.run(url, parser.parse_args(arguments))


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


async def test_flood_of_dead_letters_writes_one_line(run_id: str) -> None:
    async with new_vhost(f"{run_id}_dead") as url:
        with capture_logs() as lines:
            await make_dead_letters(url, *map(str, range(5)))

    assert [line["event"] for line in lines if line["log_level"] == "error"] == [
        "event.dead_lettered"
    ]


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
