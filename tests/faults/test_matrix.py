"""The fault matrix: history, databases, queues and sockets agree after every fault.

`just chaos` shows a table of the results; `just chaos --all` injects every fault, and pairs.
"""

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from pymongo import AsyncMongoClient

from tests.conftest import Place as Servers
from tests.faults.chaos import report
from tests.faults.chaos.matrix import Place
from tests.faults.chaos.rows import PAIRS, ROWS, SECONDS, all_runs, default_runs
from tests.faults.chaos.run import (
    Outcome,
    Result,
    chaotic_system,
    compare,
    inject_under_load,
)
from tests.faults.chaos.state import on_the_way
from tests.tokens import TokenMaker
from tools.paths import ROOT

Unique = Callable[[str], str]


@pytest.fixture(scope="module")
async def chaotic(
    place: Servers,
    run_id: str,
    tokens: TokenMaker,
    amqp_management_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Place]:
    logs = tmp_path_factory.mktemp("chaos")
    async with chaotic_system(place, run_id, tokens, logs, amqp_management_url) as system:
        yield system


@pytest.mark.timeout(1500)
@pytest.mark.long
async def test_history_databases_and_queues_agree_after_every_fault(
    chaotic: Place, unique: Unique
) -> None:
    seed = int(os.environ.get("POSTBUS_SEED") or random.randrange(2**32))  # noqa: S311
    chaotic.dice.seed(seed)
    outcome = Outcome()

    runs = default_runs()
    history = await inject_under_load(chaotic, unique, runs, seconds=SECONDS, outcome=outcome)
    outcome.findings = await compare(chaotic, history, outcome.left)

    print(report.table(outcome, seed))  # noqa: T201  # pytest shows it if the test fails
    assert outcome.findings.empty, outcome.findings
    assert report.late(outcome) == []


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_damage_of_the_running_system_is_found(chaotic: Place, unique: Unique) -> None:
    outcome = Outcome()
    quiet: list[tuple[str, ...]] = [()] * 5
    history = await inject_under_load(chaotic, unique, quiet, outcome=outcome)
    deleted = {write.target for write in history.writes if write.kind == "delete"}
    created = [write for write in history.writes if write.body and write.body["id"] not in deleted]
    post, comment = (
        next(write.body for write in created if write.kind == kind and write.body)
        for kind in ("post", "comment")
    )
    os.kill(chaotic.system.pid("users-2"), signal.SIGKILL)
    async with damaged_data(chaotic, post["id"], comment["id"]):
        left = await on_the_way(chaotic)
        found = await compare(chaotic, history, left)
    await chaotic.system.start("users-2")

    assert outcome.left == []
    assert {name: count for name, count in found.summary().items() if count} == {
        "lost": 1,
        "doubled": 1,
        "unsettled": 1,
        "dead": 1,
        "corrected": 2,  # the counters of a tag and of a post
        "ended": 1,
    }, found


@asynccontextmanager
async def damaged_data(chaotic: Place, post: str, comment: str) -> AsyncIterator[None]:
    """Lose a post, double a comment, and add an event to an outbox and to dead letters."""
    dead = "posts.postbus.users.v1.UserDeleted.dead"
    async with (
        AsyncMongoClient[dict[str, Any]](chaotic.mongo_url) as client,
        await aio_pika.connect(chaotic.amqp_url) as connection,
    ):
        database = client.get_default_database()
        channel = await connection.channel()
        await database["posts"].delete_one({"_id": post})
        double = await database["comments"].find_one({"_id": comment})
        await database["comments"].insert_one((double or {}) | {"_id": "double"})
        await database["inbox"].insert_one({"_id": "unsent", "until": datetime.max})
        letter = aio_pika.Message(b"an event", user_id="posts")
        await channel.default_exchange.publish(letter, dead)
        yield
        await (await channel.get_queue(dead)).purge()
        await database["inbox"].delete_one({"_id": "unsent"})
        await database["comments"].delete_one({"_id": "double"})
    await chaotic.system.output("posts", "repair")


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_interrupted_run_ends_its_processes_and_shows_its_results() -> None:
    program = [sys.executable, "-m", "tests.faults.chaos", "sockets_never_read", "broker_stalled"]
    chaos = await asyncio.create_subprocess_exec(
        *program, cwd=ROOT, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert chaos.stdout is not None
    output = ""
    while "1 of 2: " not in output:
        output += (await chaos.stdout.readline()).decode()

    os.killpg(chaos.pid, signal.SIGINT)  # as Ctrl-C does
    output += (await chaos.stdout.read()).decode()

    assert await chaos.wait() == 130
    assert "Interrupted before the comparison." in output
    assert "| 20 sockets that call and never read, for 10 s (27) | `sockets_never_read` |" in output
    with pytest.raises(ProcessLookupError):
        os.killpg(chaos.pid, 0)


async def test_unknown_row_is_an_error_that_names_the_rows() -> None:
    chaos = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.chaos", "no_such_fault"),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )

    _, error = await chaos.communicate()

    assert chaos.returncode == 2
    assert b"no row no_such_fault; there is one_worker_killed, " in error


def test_runs_have_every_fault_and_pairs_of_different_parts() -> None:
    runs = all_runs(random.Random(1))  # noqa: S311

    pairs = [each for each in runs if len(each) == 2]
    by_name = {row.name for row in ROWS.values() if row.when == "by name"}
    assert {name for each in runs for name in each} == set(ROWS) - by_name
    assert (len(pairs), len(set(pairs))) == (PAIRS, PAIRS)
    assert all(ROWS[a].part != ROWS[b].part for a, b in pairs)
    assert runs == all_runs(random.Random(1))  # noqa: S311  # the same for the same seed


def test_page_of_faults_names_every_row() -> None:
    page = Path(ROOT / "docs" / "faults.md").read_text()

    assert [name for name in ROWS if f"`{name}`" not in page and f"chaos {name}`" not in page] == []


def test_table_has_errors_times_and_reasons() -> None:
    failed = Counter({"503 NOT_CONNECTED": 3, "504 DEADLINE_EXCEEDED": 1})
    result = Result(names=("broker_killed",), back=2.25, responses=20, failed=failed)
    impossible = Result(names=("mongodb_killed",), not_possible="a container")
    outcome = Outcome(results=[result, impossible], omitted=[("garbage",)])

    lines = report.table(outcome, 7).splitlines()

    assert lines[2:4] == [
        "| SIGKILL of RabbitMQ (7) | `broker_killed` | 4 of 20: 503 NOT_CONNECTED (3),"
        " 504 DEADLINE_EXCEEDED (1) | 2.2 | 5 |",
        "| SIGKILL of MongoDB (16) | `mongodb_killed` | not possible: a container | | |",
    ]
    assert lines[-1] == "not run, as no time was left: garbage"
    assert report.late(outcome) == []
    late = replace(result, back=26.0)
    assert report.late(replace(outcome, results=[late])) == ["broker_killed: 26.0 s"]
    assert report.late(replace(outcome, results=[Result(names=("garbage",))])) == ["garbage: inf s"]
