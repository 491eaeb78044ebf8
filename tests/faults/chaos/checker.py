"""Compare a history with the state of both databases."""

from dataclasses import dataclass, field, fields
from typing import Final

from tests.faults.chaos.history import NOTIFICATION_CREATED, POST_CREATED, History, Write
from tests.faults.chaos.state import State

__all__ = ["Findings", "check"]

LONGEST_ANSWER: Final = 5.6
"""The budget of a call, and what the gateway needs to answer."""
LARGEST_PROCESS: Final = 400.0
"""MiB."""
LARGEST_LOG: Final = 8.0
"""MiB of a process in one run."""
_EXPECTED: Final = (404, 409, 429, 499)
"""Client errors of correct requests: 404 only where something may be absent."""


@dataclass(slots=True)
class Findings:
    """The faults that were found, by kind."""

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
    refused: list[str] = field(default_factory=list)
    """Client errors of correct requests."""
    unread: list[str] = field(default_factory=list)
    """Acknowledged writes that their own user did not see in the next read."""
    missed: list[str] = field(default_factory=list)
    """Events of acknowledged writes that a socket missed, although it stayed open."""
    foreign: list[str] = field(default_factory=list)
    """Private events of other users on a socket."""
    unsettled: list[str] = field(default_factory=list)
    """Queues, outboxes and differences of counters that are not empty in the end."""
    dead: list[str] = field(default_factory=list)
    """Dead letters that are not garbage."""
    corrected: list[str] = field(default_factory=list)
    """Corrections of derived data by `just repair`."""
    ended: list[str] = field(default_factory=list)
    """Processes that have ended by themselves."""
    bloated: list[str] = field(default_factory=list)
    """Processes with too much memory, and too long logs."""

    def summary(self) -> dict[str, int]:
        """Return the number of each kind."""
        return {each.name: len(getattr(self, each.name)) for each in fields(self)}

    @property
    def empty(self) -> bool:
        return not any(self.summary().values())


def check(history: History, state: State) -> Findings:
    """Return everything in which history and state differ, and every wrong response."""
    found = Findings()
    _check_responses(history, found)
    deleted = {each.target for each in history.writes if each.kind == "delete"}
    for write in history.writes:
        if write.repeated is not None and write.repeated != write.body:
            found.other_reply.append(_named(write))
        if write.unread:
            found.unread.append(_named(write))
        if write.kind in ("post", "comment"):
            created = state.titles if write.kind == "post" else state.comments
            if (write.body or {}).get("id") not in deleted:
                _check_count(write, created[write.target], found)
        elif write.kind == "delete" and write.acknowledged and write.target in state.post_ids:
            found.lost.append(_named(write))
    _check_flags(history, found, "like", "unlike", state.likes)
    _check_flags(history, found, "follow", "unfollow", state.follows)
    _check_profiles(history, found, state.bios)
    _check_sockets(history, found)
    _check_end(state, found)
    return found


def _named(write: Write) -> str:
    tries = " ".join(f"{each.status}:{each.reason}:{each.outcome}" for each in write.tries)
    return f"{write.kind} {write.target} of {write.person}: {tries}"


def _check_responses(history: History, found: Findings) -> None:
    latest = LONGEST_ANSWER + history.delay
    for each in history.tries():
        text = f"{each.status} {each.reason} after {each.seconds:.2f} s"
        if each.status == 500:
            found.internal.append(text)
        if each.status >= 400 and not each.reason:
            found.untyped.append(text)
        if each.status in (429, 503) and not each.retry_after:
            found.untyped.append(f"{text} without Retry-After")
        if each.status and each.seconds > latest:
            found.late.append(text)
        if 400 <= each.status < 500 and (
            each.status not in _EXPECTED or (each.status == 404 and not each.absent)
        ):
            found.refused.append(text)


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


def _check_sockets(history: History, found: Findings) -> None:
    created = {
        (write.body or {}).get("id", ""): write.tries[0].at
        for write in history.writes
        if write.kind == "post" and write.acknowledged
    }
    for socket in history.sockets:
        others = socket.seen.get(NOTIFICATION_CREATED, set()) - {socket.person}
        found.foreign += [f"notification of {each} on {socket.person}'s" for each in others]
        if socket.closed is None:
            seen = socket.seen.get(POST_CREATED, set())
            due = {id_ for id_, began in created.items() if began > socket.opened}
            found.missed += [f"post {id_} on {socket.person}'s socket" for id_ in due - seen]


def _check_end(state: State, found: Findings) -> None:
    found.unsettled += state.unsettled
    found.dead += state.dead_letters
    found.corrected += state.repairs
    found.ended += state.ended
    for name, size in state.memory.items():
        if size > LARGEST_PROCESS:
            found.bloated.append(f"{name}: {size:.0f} MiB of memory")
    for name, size in state.logs.items():
        if size > LARGEST_LOG:
            found.bloated.append(f"{name}: {size:.0f} MiB of log")
