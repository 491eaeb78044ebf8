"""The checker of the fault matrix finds every kind of damage, done to recorded data on purpose."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.faults.chaos.checker import LARGEST_LOG, LARGEST_PROCESS, LONGEST_ANSWER, check
from tests.faults.chaos.history import (
    NOTIFICATION_CREATED,
    POST_CREATED,
    History,
    Socket,
    Try,
    Write,
)
from tests.faults.chaos.message_rows import is_garbage
from tests.faults.chaos.state import State


@pytest.mark.parametrize("body", [b"", b"\xff\xff\xff\xff and more"])
def test_garbage_is_known_among_dead_letters(body: bytes) -> None:
    assert is_garbage(body)


def test_event_is_no_garbage() -> None:
    assert not is_garbage(b"\x0a\x10an event")


def a_try(status: int = 200, outcome: str = "DONE", **fields: float) -> Try:
    reason = "" if status < 400 else "SOME_REASON"
    return Try(
        at=fields.get("at", 0),
        seconds=fields.get("seconds", 0.1),
        status=status,
        reason=reason,
        outcome=outcome,
    )


def a_write(kind: str, target: str, *tries: Try, acknowledged: bool = True) -> Write:
    body = {"id": f"id of {target}"} if acknowledged else None
    return Write(kind=kind, person="ann", target=target, once=False, tries=list(tries), body=body)


def a_socket(**seen: str) -> Socket:
    types = {"posts": POST_CREATED, "notifications": NOTIFICATION_CREATED}
    return Socket(
        person="ann", opened=1, seen={types[name]: {subject} for name, subject in seen.items()}
    )


def damaged() -> list[tuple[str, History, State]]:
    """Return the name of each finding with a history and a state that must cause it."""
    done, refused = a_try(), a_try(503, "NO_EFFECT")
    unknown = a_write("post", "b", refused, acknowledged=False)
    flag = a_write("like", "p", refused, acknowledged=False)
    other, unread = a_write("post", "a", done), a_write("profile", "new", done)
    other.repeated, unread.unread = {"id": "another"}, True
    both = [a_write("like", "p", done), a_write("unlike", "p", done)]
    follow = a_write("follow", "bob", done)
    post = a_write("post", "a", a_try(at=2))
    one = State(titles=Counter(a=1))
    no_retry_after = replace(a_try(503), retry_after=False)
    nothing = History()
    return [
        ("lost", History([a_write("post", "a", done)]), State()),
        ("lost", History([a_write("like", "p", done)]), State()),
        ("lost", History([follow]), State()),
        ("lost", History(both), State(likes={("ann", "p")})),
        ("lost", History([a_write("profile", "bio", done)]), State(bios={"ann": "old"})),
        ("lost", History([a_write("delete", "x", done)]), State(post_ids={"x"})),
        ("doubled", History([a_write("comment", "a", done)]), State(comments=Counter(a=2))),
        ("doubled", History([a_write("post", "a", done)]), State(titles=Counter(a=2))),
        ("false_no_effect", History([unknown]), State(titles=Counter(b=1))),
        ("false_no_effect", History([flag]), State(likes={("ann", "p")})),
        ("other_reply", History([other]), one),
        ("internal", History([], [a_try(500, "UNKNOWN")]), State()),
        ("untyped", History([], [Try(at=0, seconds=0.1, status=502)]), State()),
        ("untyped", History([], [no_retry_after]), State()),
        ("late", History([], [a_try(seconds=LONGEST_ANSWER + 0.1)]), State()),
        ("refused", History([], [a_try(401)]), State()),
        ("refused", History([], [a_try(404)]), State()),
        ("unread", History([unread]), State(bios={"ann": "new"})),
        ("missed", History([post], sockets=[a_socket(posts="id of c")]), one),
        ("foreign", History(sockets=[a_socket(notifications="bob")]), State()),
        ("unsettled", nothing, State(unsettled=["posts.delay.1000: 1"])),
        ("dead", nothing, State(dead_letters=["posts.x.dead: 1"])),
        ("corrected", nothing, State(repairs=["post x: like_count 1 instead of 2"])),
        ("ended", nothing, State(ended=["posts: exit code 1"])),
        ("bloated", nothing, State(memory={"posts": LARGEST_PROCESS + 1})),
        ("bloated", nothing, State(logs={"posts": LARGEST_LOG + 1})),
    ]


@pytest.mark.parametrize(("kind", "history", "state"), damaged())
def test_checker_finds_damage(kind: str, history: History, state: State) -> None:
    found = check(history, state).summary()

    assert found[kind] == 1
    assert sum(found.values()) == 1


def test_every_finding_of_the_checker_has_damage_done_on_purpose() -> None:
    assert set(check(History(), State()).summary()) == {kind for kind, _, _ in damaged()}


def test_checker_accepts_a_history_without_damage() -> None:
    unknown = a_write("like", "p", a_try(504, "UNKNOWN"), acknowledged=False)
    later = [a_write("follow", "bob", a_try()), a_write("unfollow", "bob", a_try())]
    absent = [replace(a_try(404), absent=True)]

    for likes in (set[tuple[str, str]](), {("ann", "p")}):
        assert check(History([unknown, *later], absent), State(likes=likes)).empty


def test_checker_accepts_events_of_which_a_closed_socket_has_no_record() -> None:
    posts = [a_write("post", name, a_try(at=at)) for name, at in (("a", 0), ("b", 2), ("c", 3))]
    seen, closed = a_socket(posts="id of c"), replace(a_socket(), closed=4)
    seen.seen[POST_CREATED].add("id of b")
    state = State(titles=Counter(a=1, b=1, c=1))

    assert check(History(posts, sockets=[seen, closed]), state).empty


def test_checker_allows_for_the_delay_of_the_machine() -> None:
    late = a_try(seconds=LONGEST_ANSWER + 0.1)

    assert check(History([], [late], delay=0.2), State()).empty
