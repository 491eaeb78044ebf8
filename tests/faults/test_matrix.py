"""The fault matrix: history, databases and queues agree after every fault.

`just chaos` runs all rows, one at a time and in pairs, and writes docs/faults.md.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from tests.conftest import Place as Servers
from tests.faults.chaos.checker import State, check
from tests.faults.chaos.history import History, Try, Write
from tests.faults.chaos.rows import QUICK, ROWS, Place, pairs
from tests.faults.chaos.run import Outcome, chaotic_system, inject_under_load
from tests.tokens import TokenMaker

Unique = Callable[[str], str]
REPORT = os.environ.get("POSTBUS_CHAOS_REPORT", "")
"""The file for the table of results; all rows run if it is set."""


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
    chaotic: Place, place: Servers, unique: Unique
) -> None:
    seed = int(os.environ.get("POSTBUS_SEED") or random.randrange(2**32))  # noqa: S311
    print(f"POSTBUS_SEED={seed}")  # noqa: T201  # pytest shows it if the test fails
    chaotic.dice.seed(seed)
    wanted = os.environ.get("POSTBUS_CHAOS_ROWS", "").split() or (list(ROWS) if REPORT else QUICK)
    runs: list[tuple[str, ...]] = [(name,) for name in wanted]
    if REPORT:
        runs += pairs(chaotic.dice, 5)

    outcome = await inject_under_load(chaotic, place, unique, runs)

    if REPORT:
        await asyncio.to_thread(Path(REPORT).write_text, report(outcome))
    print(outcome)  # noqa: T201  # pytest shows it if the test fails
    assert outcome.findings.empty, outcome.findings
    late = {
        name: seconds
        for name, seconds in outcome.back.items()
        if "+" not in name and seconds > 5 * ROWS[name].allowed
    }
    assert not late  # five times: other processes of the machine delay the tests
    assert await dead_letters(chaotic) == []
    corrections = (await chaotic.system.output("posts", "repair")).splitlines()[:-1]
    # a change that posts does not show raises the version at its owner alone
    wrong = [line for line in corrections if not line.endswith(": version corrected")]
    assert wrong == []
    assert " 0 with wrong counters" in await chaotic.system.output("users", "repair")


async def dead_letters(chaotic: Place) -> list[str]:
    """Return the queues with dead letters that are not garbage."""
    async with httpx.AsyncClient(base_url=chaotic.management_url) as management:
        queues = (await management.get(f"/api/queues/{chaotic.vhost}")).json()
        found = []
        for each in queues:
            if each["name"].endswith(".dead") and each.get("messages"):
                get = {"count": 100, "ackmode": "ack_requeue_true", "encoding": "base64"}
                path = f"/api/queues/{chaotic.vhost}/{each['name']}/get"
                letters = (await management.post(path, json=get)).json()
                if any(letter["payload"] != "/////w==" for letter in letters):
                    found.append(each["name"])
        return found


def report(outcome: Outcome) -> str:
    """Return docs/faults.md."""
    lines = [
        "# Faults",
        "",
        "Written by `just chaos`: two processes of each service under load, and the effect of each",
        "fault. “Back” is the time from its end to good responses of reads and writes of both",
        "services.",
        "",
        "| row | fault | back (s) | required (s) |",
        "| --- | --- | --- | --- |",
    ]
    for name, seconds in outcome.back.items():
        rows = [ROWS[each] for each in name.split(" + ")]
        title = " and ".join(row.title for row in rows)
        number = ", ".join(row.number for row in rows)
        required = f"{rows[0].allowed:g}" if len(rows) == 1 else ""
        lines.append(f"| {number} | {title} | {seconds:.1f} | {required} |")
    found = outcome.findings.summary()
    lines += [
        "",
        f"{outcome.writes} writes; every event had its effect after {outcome.settled:.0f} s.",
    ]
    lines += ["", "| found by the checker | count |", "| --- | --- |"]
    lines += [f"| {name.replace('_', ' ')} | {count} |" for name, count in found.items()]
    lines += ["", "| status of responses | count |", "| --- | --- |"]
    lines += [f"| {status} | {count} |" for status, count in outcome.errors.items()]
    return "\n".join(lines) + "\n"


def a_try(status: int = 200, outcome: str = "DONE", **fields: float) -> Try:
    reason = "" if status < 400 else "SOME_REASON"
    return Try(
        at=0, seconds=fields.get("seconds", 0.1), status=status, reason=reason, outcome=outcome
    )


def a_write(kind: str, target: str, *tries: Try, acknowledged: bool = True) -> Write:
    body = {"id": f"id of {target}"} if acknowledged else None
    return Write(kind=kind, person="ann", target=target, once=False, tries=list(tries), body=body)


def damaged() -> list[tuple[str, History, State]]:
    """Return the name of each finding with a history and a state that must cause it."""
    done, refused = a_try(), a_try(503, "NO_EFFECT")
    unknown = a_write("post", "b", refused, acknowledged=False)
    other = a_write("post", "a", done)
    other.repeated = {"id": "another"}
    both = [a_write("like", "p", done), a_write("unlike", "p", done)]
    return [
        ("lost", History([a_write("post", "a", done)]), State()),
        ("lost", History([a_write("like", "p", done)]), State()),
        ("lost", History(both), State(likes={("ann", "p")})),
        ("lost", History([a_write("profile", "bio", done)]), State(bios={"ann": "old"})),
        ("lost", History([a_write("delete", "x", done)]), State(post_ids={"x"})),
        ("doubled", History([a_write("comment", "a", done)]), State(comments=Counter(a=2))),
        ("false_no_effect", History([unknown]), State(titles=Counter(b=1))),
        ("other_reply", History([other]), State(titles=Counter(a=1))),
        ("internal", History([], [a_try(500, "UNKNOWN")]), State()),
        ("untyped", History([], [Try(at=0, seconds=0.1, status=404)]), State()),
        ("late", History([], [a_try(seconds=6.0)]), State()),
    ]


@pytest.mark.parametrize(("kind", "history", "state"), damaged())
def test_checker_finds_damage(kind: str, history: History, state: State) -> None:
    found = check(history, state).summary()

    assert found[kind] == 1
    assert sum(found.values()) == 1


def test_checker_accepts_a_history_without_damage() -> None:
    unknown = a_write("like", "p", a_try(504, "UNKNOWN"), acknowledged=False)
    later = [a_write("follow", "bob", a_try()), a_write("unfollow", "bob", a_try())]

    for likes in (set[tuple[str, str]](), {("ann", "p")}):
        assert check(History([unknown, *later]), State(likes=likes)).empty
