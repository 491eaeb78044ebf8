"""The database examines a bounded number of documents for each page and total."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from pymongo import AsyncMongoClient

from posts import likes, notification_repository, post_search
from posts.authors import AuthorCache, AuthorRepository
from posts.comments import CommentRepository
from posts.likes import LikeRepository
from posts.models import PUBLISHED, create_indexes
from posts.notification_repository import NotificationRepository
from posts.post_filters import NEWEST, OLDEST, UPDATED, Order, PostFilter
from posts.post_search import PostSearch
from posts.tags import TagRepository
from shared.data.mongo_database import Mongo
from shared.data.pages import Page, Position
from tests.posts.sent_commands import SentCommands

Unique = Callable[[str], str]
Document = dict[str, Any]

POSTS = 5000
AUTHOR, FAN = "author", "fan"


def a_page(size: int = 20, after: Position = ()) -> Page:
    return Page(size, after, str)


def a_post(number: int) -> Document:
    """Return a post with one of two common words. Only the oldest has both, and a rare tag."""
    words = ["even" if number % 2 else "odd", f"only{number}"]
    return {
        "_id": f"018f3f6e-0000-7000-8000-{number:012}",
        "author_id": AUTHOR,
        "slug": str(number),
        "slugs": [str(number)],
        "title": f"Title {number}",
        "tags": [],
        "tag_keys": ["common"] if number else ["common", "rare"],
        "words": words if number else [*words, "odd", "even"],
        "status": PUBLISHED,
        "place": f"{number:016}",
        "created_at": number,
        "updated_at": number // 3,
        "shape": 2,
    }


def a_like(number: int) -> Document:
    id_ = f"018f3f6e-0000-7000-8000-{number:012}"
    return {"_id": f"{id_}/{FAN}", "post_id": id_, "user_id": FAN, "place": f"{number:016}"}


@pytest.fixture(scope="module")
async def filled(mongo_url: str, run_id: str) -> AsyncIterator[str]:
    """The URL of a database with many posts by one user, all liked by another user."""
    url = httpx.URL(mongo_url)
    own = str(url.copy_with(path=f"{url.path}_bounds_{run_id}"))
    async with AsyncMongoClient[Document](own) as client:
        database = client.get_default_database()
        mongo = Mongo(database)
        await create_indexes(mongo)
        await database["posts"].insert_many([a_post(number) for number in range(POSTS)])
        await database["likes"].insert_many([a_like(number) for number in range(POSTS)])
        yield own
        await client.drop_database(database)


@pytest.fixture
async def mongo(filled: str) -> AsyncIterator[tuple[Mongo, SentCommands]]:
    sent = SentCommands()
    async with AsyncMongoClient[Document](filled, event_listeners=[sent]) as client:
        yield Mongo(client.get_default_database()), sent


def examined(plan: Any, kind: str) -> Iterator[int]:
    """Yield the number of documents or index keys that each stage of a plan examined."""
    if isinstance(plan, dict):
        yield int(plan.get(f"{kind}Examined", 0))
        yield int(plan.get(f"total{kind.title()}Examined", 0)) if "$lookup" in plan else 0
        for name, inner in plan.items():
            if name != "allPlansExecution":
                yield from examined(inner, kind)
    if isinstance(plan, list):
        for inner in plan:
            yield from examined(inner, kind)


async def examined_by(mongo: Mongo, sent: SentCommands, kind: str = "docs") -> int:
    """Return the number of documents or keys that the commands since the last call examine."""
    total = 0
    for command in sent.take():
        plan = await mongo.database.command("explain", command, verbosity="executionStats")
        total += sum(examined(plan, kind))
    sent.take()
    return total


async def pages(find: Callable[[Position], Any]) -> tuple[list[str], int]:
    """Return the ids on all pages of a list, and the number of pages."""
    found, count, rest = [], 0, ()
    while count == 0 or rest:
        posts, rest = await find(rest)
        found += [post.id for post in posts]
        count += 1
    return found, count


@pytest.mark.parametrize(
    ("wanted", "order"),
    [
        (PostFilter(q="odd even"), NEWEST),
        (PostFilter(q="odd even"), OLDEST),
        (PostFilter(q="even", tag="common", author_ids=["nobody"]), NEWEST),
        (PostFilter(q="even", author_ids=[AUTHOR]), NEWEST),
        (PostFilter(tag="rare", updated_since=1), UPDATED),
        (PostFilter(q="even", author_ids=[AUTHOR], updated_since=0), UPDATED),
    ],
)
async def test_page_of_posts_examines_a_bounded_number(
    wanted: PostFilter, order: Order, mongo: tuple[Mongo, SentCommands]
) -> None:
    opened, sent = mongo

    await PostSearch(opened).find(wanted, a_page(100), order)

    assert await examined_by(opened, sent) < 2010


async def test_page_of_liked_posts_examines_a_bounded_number(
    mongo: tuple[Mongo, SentCommands],
) -> None:
    opened, sent = mongo
    repository = LikeRepository(opened)

    posts, rest = await repository.posts(FAN, PostFilter(tag="rare"), a_page())
    work = await examined_by(opened, sent)
    total = await repository.count_posts(FAN, PostFilter(tag="rare"))

    assert (posts, bool(rest), total) == ([], True, None)
    assert work < 2010  # 1000 likes with their posts
    assert await examined_by(opened, sent) < 10


@pytest.mark.parametrize("order", [NEWEST, OLDEST])
async def test_short_pages_reach_every_post_once(
    order: Order, mongo: tuple[Mongo, SentCommands]
) -> None:
    posts, wanted = PostSearch(mongo[0]), PostFilter(q="even", author_ids=[AUTHOR])
    rare = PostFilter(q="odd even")

    found, _ = await pages(lambda after: posts.find(wanted, a_page(70, after), order))
    rarely, short = await pages(lambda after: posts.find(rare, a_page(20, after), order))

    even = [f"018f3f6e-0000-7000-8000-{number:012}" for number in (0, *range(1, POSTS, 2))]
    assert found == (even if order is OLDEST else even[::-1])
    assert (rarely, short) == ([even[0]], 2)


async def test_posts_with_equal_update_times_are_listed_once(
    mongo: tuple[Mongo, SentCommands],
) -> None:
    posts, wanted = PostSearch(mongo[0]), PostFilter(updated_since=1600)

    found, count = await pages(lambda after: posts.find(wanted, a_page(20, after), UPDATED))

    expected = [f"018f3f6e-0000-7000-8000-{number:012}" for number in range(4800, POSTS)]
    assert (found, count) == (expected, 10)
    assert await posts.count(wanted, UPDATED) == 200


async def test_short_pages_reach_every_liked_post(mongo: tuple[Mongo, SentCommands]) -> None:
    repository, rare = LikeRepository(mongo[0]), PostFilter(tag="rare")

    found, count = await pages(lambda after: repository.posts(FAN, rare, a_page(20, after)))
    everything, _ = await pages(
        lambda after: repository.posts(FAN, PostFilter(), a_page(90, after))
    )

    assert (len(found), count) == (1, POSTS // likes.EXAMINED + 1)
    assert len(everything) == len(set(everything)) == POSTS


async def test_rare_condition_needs_one_short_scan(mongo: tuple[Mongo, SentCommands]) -> None:
    opened, sent = mongo
    posts, wanted = PostSearch(opened), PostFilter(q="even only3", tag="common")

    found, rest = await posts.find(wanted, a_page(), NEWEST)

    assert ([post.slug for post in found], rest) == (["3"], ())
    assert await posts.count(wanted, NEWEST) == 1
    assert await examined_by(opened, sent) < 20


async def test_query_of_many_words_probes_a_few_indexes(mongo: tuple[Mongo, SentCommands]) -> None:
    opened, sent = mongo
    words = " ".join(f"w{number}" for number in range(30))

    await PostSearch(opened).find(PostFilter(q=words), a_page(), NEWEST)

    assert len(sent.take()) == 6


async def test_total_of_posts_has_a_bound(
    mongo: tuple[Mongo, SentCommands], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, sent = mongo
    posts = PostSearch(opened)
    sent.take()
    assert await posts.count(PostFilter(tag="common"), NEWEST) == POSTS
    assert {"$limit": 50_001} in sent.take()[0]["pipeline"]
    assert await posts.count(PostFilter(q="odd even"), NEWEST) is None
    halves = [PostFilter(q="odd"), PostFilter(q="even")]
    monkeypatch.setattr(post_search, "COUNTED", 4000)
    sent.take()

    assert await posts.count(PostFilter(tag="common"), NEWEST) is None
    assert await examined_by(opened, sent, "keys") < 4010
    assert await posts.count(PostFilter(q="even"), NEWEST) == 2501
    assert await posts.count_all(halves, NEWEST) is None


async def test_lists_read_one_document_more_than_their_page(
    mongo: tuple[Mongo, SentCommands],
) -> None:
    opened, sent = mongo
    page, search = a_page(7), PostSearch(opened)
    likes_, comments = LikeRepository(opened), CommentRepository(opened)
    sent.take()

    await search.find(PostFilter(), page, NEWEST)
    await likes_.of_post("post", page)
    await likes_.posts(FAN, PostFilter(), page)
    await comments.of_post("post", page)
    await NotificationRepository(opened).of_user("reader", page)
    await TagRepository(opened).most_used(page)

    limits = [
        (command.get("find") or command["aggregate"], limit_of(command)) for command in sent.take()
    ]
    assert limits == [
        ("posts", 8),
        ("likes", 8),
        ("likes", 1),  # the last one that is examined
        ("likes", 8),
        ("comments", 8),
        ("notifications", 8),
        ("tags", 8),
    ]


async def test_names_are_looked_up_in_a_bounded_number_of_authors(
    mongo: tuple[Mongo, SentCommands],
) -> None:
    opened, sent = mongo
    sent.take()

    await AuthorRepository(opened, AuthorCache()).by_names(["ann", "bea", "cid"])

    assert [limit_of(command) for command in sent.take()] == [6]


def limit_of(command: Document) -> int | None:
    """Return the limit of a command: its own, or that of its last stage."""
    stages = command.get("pipeline") or [{}]
    limit: int | None = command.get("limit") or stages[-1].get("$limit")
    return limit


async def test_totals_of_tags_and_notifications_have_bounds(
    mongo: tuple[Mongo, SentCommands], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, sent = mongo
    tags, notifications = TagRepository(opened), NotificationRepository(opened)
    await opened.database["tags"].insert_many(
        [{"_id": f"t{number}", "name": "t", "post_count": 1} for number in range(40)]
    )
    for number in range(40):
        await notifications.add(1, "reader", "actor", post_id=str(number))
    sent.take()
    assert (await tags.total(), await notifications.total("reader", unread_only=False)) == (40, 40)
    assert await notifications.unread("reader") == 40
    limits = [stage["$limit"] for command in sent.take() for stage in command["pipeline"][1:2]]
    assert limits == [50_001, 50_001, 10_000]
    monkeypatch.setattr("posts.tags.COUNTED", 4)
    monkeypatch.setattr(notification_repository, "COUNTED", 4)
    monkeypatch.setattr(notification_repository, "UNREAD_COUNTED", 4)
    sent.take()

    assert await tags.total() is None
    assert await notifications.total("reader", unread_only=True) is None
    assert await notifications.unread("reader") == 4
    assert await examined_by(opened, sent, "keys") < 20
