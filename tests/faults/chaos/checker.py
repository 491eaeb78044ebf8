"""Compare a history with the state of both databases."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any, Final

import asyncpg
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from tests.faults.chaos.history import History, Write

__all__ = ["Findings", "State", "check", "read_state"]

LONGEST_ANSWER: Final = 5.6
"""The budget of a call, and what the gateway needs to answer."""


@dataclass(slots=True, kw_only=True)
class State:
    """What the databases hold."""

    titles: Counter[str] = field(default_factory=Counter)
    """Titles of posts."""
    post_ids: set[str] = field(default_factory=set)
    comments: Counter[str] = field(default_factory=Counter)
    likes: set[tuple[str, str]] = field(default_factory=set)
    """Person and post."""
    follows: set[tuple[str, str]] = field(default_factory=set)
    """Id of the follower, and name of the followed user."""
    bios: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Findings:
    """What is wrong; each list is empty if the system keeps its promises."""

    lost: list[str] = field(default_factory=list)
    """Acknowledged writes that are not there."""
    doubled: list[str] = field(default_factory=list)
    """Writes with two effects."""
    false_no_effect: list[str] = field(default_factory=list)
    """Writes with an effect, of which every response said NO_EFFECT."""
    other_reply: list[str] = field(default_factory=list)
    """Writes whose repetition had another response."""
    internal: list[str] = field(default_factory=list)
    """Responses 500."""
    untyped: list[str] = field(default_factory=list)
    """Errors without a reason, and 429 and 503 without `Retry-After`."""
    late: list[str] = field(default_factory=list)
    """Responses after the budget."""

    def summary(self) -> dict[str, int]:
        """Return the number of each kind."""
        return {each.name: len(getattr(self, each.name)) for each in fields(self)}

    @property
    def empty(self) -> bool:
        return not any(self.summary().values())


async def read_state(mongo_url: str, postgres_url: str) -> State:
    """Read what the checker compares; the addresses contain the services' databases."""
    state = State()
    client: AsyncMongoClient[dict[str, Any]]
    async with AsyncMongoClient(mongo_url) as client:
        database: AsyncDatabase[dict[str, Any]] = client.get_default_database()
        async for post in database["posts"].find({}, {"title": 1}):
            state.titles[post["title"]] += 1
            state.post_ids.add(post["_id"])
        async for comment in database["comments"].find({}, {"body": 1}):
            state.comments[comment["body"]] += 1
        async for like in database["likes"].find({}, {"user_id": 1, "post_id": 1}):
            state.likes.add((like["user_id"], like["post_id"]))
    connection = await asyncpg.connect(postgres_url)
    try:
        names = {
            row["id"]: row for row in await connection.fetch("SELECT id, username, bio FROM users")
        }
        state.bios = {id_: row["bio"] for id_, row in names.items()}
        for row in await connection.fetch("SELECT follower_id, followed_id FROM follows"):
            if row["followed_id"] in names:
                state.follows.add((row["follower_id"], names[row["followed_id"]]["username"]))
    finally:
        await connection.close()
    return state


def check(history: History, state: State) -> Findings:
    """Return everything in which history and state differ, and every wrong response."""
    found = Findings()
    _check_responses(history, found)
    deleted = {each.target for each in history.writes if each.kind == "delete"}
    for write in history.writes:
        if write.repeated is not None and write.repeated != write.body:
            found.other_reply.append(_named(write))
        if write.kind in ("post", "comment"):
            created = state.titles if write.kind == "post" else state.comments
            if (write.body or {}).get("id") not in deleted:
                _check_count(write, created[write.target], found)
        elif write.kind == "delete" and write.acknowledged and write.target in state.post_ids:
            found.lost.append(_named(write))
    _check_flags(history, found, "like", "unlike", state.likes)
    _check_flags(history, found, "follow", "unfollow", state.follows)
    _check_profiles(history, found, state.bios)
    return found


def _named(write: Write) -> str:
    tries = " ".join(f"{each.status}:{each.reason}:{each.outcome}" for each in write.tries)
    return f"{write.kind} {write.target} of {write.person}: {tries}"


def _check_responses(history: History, found: Findings) -> None:
    for each in history.tries():
        text = f"{each.status} {each.reason} after {each.seconds:.2f} s"
        if each.status == 500:
            found.internal.append(text)
        if each.status >= 400 and not each.reason:
            found.untyped.append(text)
        if each.status in (429, 503) and not each.retry_after:
            found.untyped.append(f"{text} without Retry-After")
        if each.status and each.seconds > LONGEST_ANSWER:
            found.late.append(text)


def _check_count(write: Write, count: int, found: Findings) -> None:
    if count > 1:
        found.doubled.append(_named(write))
    if count == 0 and write.acknowledged:
        found.lost.append(_named(write))
    if count and write.without_effect:
        found.false_no_effect.append(_named(write))


def _check_flags(
    history: History, found: Findings, on: str, off: str, state: set[tuple[str, str]]
) -> None:
    """Check the last write of each person and target; the writes of a person are in order."""
    latest: dict[tuple[str, str], list[Write]] = {}
    for write in history.writes:
        if write.kind in (on, off):
            latest.setdefault((write.person, write.target), []).append(write)
    for key, writes in latest.items():
        wanted = False
        uncertain: set[str] = set()
        for write in writes:
            if write.acknowledged:
                wanted, uncertain = write.kind == on, set()
            elif not write.without_effect:
                uncertain.add(write.kind)
        there = key in state
        if there == wanted or (on if there else off) in uncertain:
            continue
        last = writes[-1]
        (found.lost if last.acknowledged else found.false_no_effect).append(_named(last))


def _check_profiles(history: History, found: Findings, bios: dict[str, str]) -> None:
    possible: dict[str, set[str]] = {}
    for write in history.writes:
        if write.kind != "profile":
            continue
        if write.acknowledged:
            possible[write.person] = {write.target}
        elif not write.without_effect:
            possible.setdefault(write.person, {""}).add(write.target)
    for person, texts in possible.items():
        if bios.get(person, "") not in texts:
            found.lost.append(
                f"profile of {person}: {bios.get(person)!r} is none of {sorted(texts)}"
            )
