"""Revisions of the author projection, for every order of events, and the state of callers."""

import asyncio
from itertools import permutations
from typing import Any

import pytest

from posts.authors import AuthorCache, AuthorRepository
from posts.authors.storage import MAX_AHEAD, has_stored, with_revision
from posts.caller_state import CallerReader
from posts.follow_repository import FollowRepository
from posts.likes import LikeRepository
from posts.models import Author, Follow, Like
from posts.post_repository import PostRepository
from shared.data.mongo_database import Mongo
from tests.posts.sent_commands import SentCommands
from tests.posts.test_query_plans import a_post

ALICE, BOB = "018f3f6e-0000-7000-8000-0000000000a1", "018f3f6e-0000-7000-8000-0000000000b2"


def an_author(id_: str = ALICE, **fields: Any) -> Author:
    return Author(id=id_, username="Name", name_key="name", **fields)


def after(*revisions: int) -> Author:
    """Return an author after these revisions were stored in this order."""
    author = an_author()
    for revision in revisions:
        author.revision, author.ahead = with_revision(author, revision)
    return author


@pytest.mark.parametrize("order", list(permutations([1, 2, 3, 4])))
def test_order_of_changes_does_not_matter(order: tuple[int, ...]) -> None:
    assert (after(*order).revision, after(*order).ahead) == (4, None)


def test_revision_stays_before_a_missing_change() -> None:
    gap = after(1, 3, 4, 4, 1)

    assert (gap.revision, gap.ahead) == (1, [3, 4])
    assert [has_stored(gap, revision) for revision in (1, 2, 3, 4, 5)] == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert after(1, 3, 4, 4, 1, 2).revision == 4


def test_changes_beyond_the_bound_after_a_missing_one_are_missing_too() -> None:
    author = after(*range(2, MAX_AHEAD + 10))

    assert author.ahead is not None
    assert len(author.ahead) == MAX_AHEAD == 100
    assert not has_stored(author, MAX_AHEAD + 2)
    author.revision, author.ahead = with_revision(author, 1)
    assert (author.revision, author.ahead) == (MAX_AHEAD + 1, None)


async def test_author_keeps_a_revision_that_was_stored_first(
    mongo: Mongo,
) -> None:
    authors = AuthorRepository(mongo, AuthorCache())

    stored = [await authors.add_revision(ALICE, revision) for revision in (0, 2, 1, 2)]
    assert await authors.by_ids([ALICE]) == {}  # the name is not stored yet
    await authors.upsert_if_newer(an_author())
    await authors.upsert_if_newer(an_author(version=2))

    author = (await authors.by_ids([ALICE]))[ALICE]
    assert stored == [True, True, True, False]
    assert (author.revision, author.version, author.username) == (2, 2, "Name")


async def test_post_with_author_follow_and_like_is_one_query(
    mongo: Mongo, sent: SentCommands
) -> None:
    post = a_post(1)
    post.author_id = BOB
    await PostRepository(mongo).add(post)
    for id_, revision in ((ALICE, 3), (BOB, 0)):
        await mongo.collection(Author).insert(an_author(id_, revision=revision))
    await mongo.collection(Follow).insert(
        Follow(id=f"{ALICE}/{BOB}", follower_id=ALICE, followed_id=BOB)
    )
    await mongo.collection(Like).insert(
        Like(id=f"{post.id}/{ALICE}", post_id=post.id, user_id=ALICE, place="1")
    )
    sent.take()

    for_alice = await CallerReader(mongo).read_post(post.id, ALICE)
    for_bob = await CallerReader(mongo).read_post(post.id, BOB)

    assert len(sent.take()) == 2
    assert for_alice.post is not None
    assert for_alice.author is not None
    assert for_alice.caller is not None
    assert for_bob.caller is not None
    assert (for_alice.post.title, for_alice.author.id) == (post.title, BOB)
    assert (set(for_alice.caller.followed), set(for_alice.caller.liked)) == ({BOB}, {post.id})
    assert for_alice.caller.author is not None
    assert for_alice.caller.author.revision == 3
    assert not for_bob.caller.followed | for_bob.caller.liked


async def test_concurrent_reads_of_many_callers_and_posts_are_not_mixed_up(
    mongo: Mongo, sent: SentCommands
) -> None:
    states, posts = CallerReader(mongo), [a_post(number) for number in range(1, 5)]
    for number, post in enumerate(posts):
        post.author_id = f"018f3f6e-0000-7000-8000-00000000000{number}"
        await PostRepository(mongo).add(post)
    follows, likes = FollowRepository(mongo), LikeRepository(mongo)
    lock = AuthorRepository(mongo, AuthorCache()).lock
    for user, post in ((ALICE, posts[0]), (BOB, posts[1]), (BOB, posts[2])):
        assert await follows.replace(user, {post.author_id}, lock) is True
        await likes.add(post.id, user)
    sent.take()

    pairs = [(user, post) for user in (ALICE, BOB) for post in posts]
    read = await asyncio.gather(*(states.read_post(post.id, user) for user, post in pairs))

    assert len(sent.take()) == 1
    states_by_pair = {
        (user, posts.index(post)): (len(state.caller.followed), len(state.caller.liked))
        for (user, post), state in zip(pairs, read, strict=True)
        if state.caller
    }
    assert {pair for pair, (followed, _) in states_by_pair.items() if followed} == {
        (ALICE, 0),
        (BOB, 2),
    }
    assert {pair for pair, (_, liked) in states_by_pair.items() if liked} == {
        (ALICE, 0),
        (BOB, 1),
        (BOB, 2),
    }


async def test_follows_are_replaced_in_batches(mongo: Mongo) -> None:
    follows, lock = FollowRepository(mongo), AuthorRepository(mongo, AuthorCache()).lock
    many = {f"u{number:03}" for number in range(250)}

    steps = [await follows.replace(ALICE, many, lock)]
    first = await follows.ids_followed_by(ALICE)
    steps.append(await follows.replace(ALICE, many, lock))
    other = await follows.replace(BOB, {"u001"}, lock)
    fewer = await follows.replace(ALICE, {"u001", "new"}, lock)
    left = await follows.ids_followed_by(ALICE)
    last = await follows.replace(ALICE, {"u001", "new"}, lock)

    assert (steps, other, fewer, last) == ([False, True], True, False, True)
    assert (len(first), len(left)) == (200, 51)
    assert await follows.ids_followed_by(ALICE) == ["new", "u001"]
    assert await follows.ids_followed_by(BOB) == ["u001"]


async def test_no_more_than_5000_followed_users_are_read(mongo: Mongo) -> None:
    await mongo.database["follows"].insert_many(
        {"_id": f"{ALICE}/u{n:04}", "follower_id": ALICE, "followed_id": f"u{n:04}"}
        for n in range(5001)
    )

    followed = await FollowRepository(mongo).ids_followed_by(ALICE)

    assert followed == [f"u{n:04}" for n in range(5000)]
