"""Every query that `posts` makes goes by an index, and no list is sorted after it was read."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from pymongo import AsyncMongoClient

from postbus.posts.v1 import ListPostsRequest, NotificationKind
from postbus.users.v1 import FollowChanged
from posts.authors import AuthorRepository
from posts.caller_state import CallerStates
from posts.comments import CommentRepository
from posts.filters import NEWEST, OLDEST, UPDATED, PostFilter
from posts.follows import FollowRepository
from posts.likes import LikeRepository
from posts.models import DRAFT, PUBLISHED, Author, Comment, Post
from posts.notifications import NotificationRepository
from posts.repository import PostRepository
from posts.search import PostSearch
from posts.tags import TagRepository
from shared.data.mongo_database import Mongo
from shared.data.pages import Page, Pages
from tests.posts.commands import EXPLAINED, SentCommands

Unique = Callable[[str], str]
Document = dict[str, Any]


@pytest.fixture
async def mongo(mongo_url: str, unique: Unique) -> AsyncIterator[tuple[Mongo, SentCommands]]:
    """A database of its own, whose commands are recorded."""
    sent, url = SentCommands(), httpx.URL(mongo_url)
    own = str(url.copy_with(path=unique(f"{url.path}_")))
    async with AsyncMongoClient[Document](own, event_listeners=[sent]) as client:
        yield Mongo(client.get_default_database()), sent
        await client.drop_database(client.get_default_database())


def a_page(*after: str | int) -> Page:
    pages = Pages(SecretStr("key"))
    token = pages.of(ListPostsRequest()).token(after) if after else ""
    return pages.of(ListPostsRequest(page_token=token))


def a_post_id(number: int) -> str:
    return f"018f3f6e-0000-7000-8000-{number:012}"


FIRST = a_post_id(1)


def a_post(number: int) -> Post:
    return Post(
        id=a_post_id(number),
        author_id="a",
        slug="",
        slugs=[],
        title=f"Title {number}",
        tags=["t"],
        tag_keys=[],
        words=[],
        status=PUBLISHED if number % 2 else DRAFT,
        place=f"{number:02}",
        created_at=number,
        updated_at=number,
    )


async def ask_everything(mongo: Mongo) -> None:
    """Make every query that the handlers make."""
    await ask_of_posts(mongo)
    await ask_of_what_hangs_on_them(mongo)


async def ask_of_posts(mongo: Mongo) -> None:
    posts, search, tags = PostRepository(mongo), PostSearch(mongo), TagRepository(mongo)
    await posts.create_indexes()
    for number in range(40):
        await posts.add(a_post(number))
    post = await posts.get(FIRST)
    assert post is not None
    await posts.get(post.slug)
    await posts.with_author(FIRST)
    await CallerStates(mongo).read_post(FIRST, "u")
    await posts.change(post, {"title": "Another", "tags": ["u"]})
    await posts.add_to_count(FIRST, "like_count", 1)
    await posts.take_from_counts([FIRST, a_post_id(2)], "like_count")
    await posts.some_of("a", 10)
    for wanted in (
        PostFilter(),
        PostFilter(status=DRAFT, author_ids=["a"]),
        PostFilter(author_ids=["a"]),
        PostFilter(author_ids=[f"a{number}" for number in range(100)]),
        PostFilter(tag="t"),
        PostFilter(q="title 3"),
        PostFilter(tag="t", author_ids=["a"]),
        PostFilter(tag="t", q="title"),
    ):
        for order in (NEWEST, OLDEST):
            await search.find(wanted, a_page(), order)
            await search.find(wanted, a_page("07"), order)
        await search.count(wanted, NEWEST)
        if len(wanted.author_ids or ()) > 1:  # a feed, which has one order
            continue
        updated = replace(wanted, updated_since=3)
        await search.find(updated, a_page(), UPDATED)
        await search.find(updated, a_page(7, a_post_id(7)), UPDATED)
        await search.count(updated, UPDATED)
    await posts.delete(post)
    await tags.most_used(a_page())
    await tags.most_used(a_page(3, "t"))
    await tags.total()


async def ask_of_what_hangs_on_them(mongo: Mongo) -> None:
    comments, likes, follows = (
        CommentRepository(mongo),
        LikeRepository(mongo),
        FollowRepository(mongo),
    )
    notifications, authors = NotificationRepository(mongo), AuthorRepository(mongo)
    for repository in (comments, likes, follows, notifications, authors):
        await repository.create_indexes()
    comment = Comment(id="c", post_id="p1", author_id="a", body="b", created_at=1, updated_at=1)
    await comments.add(comment)
    await comments.get("c")
    await comments.on("p1", a_page())
    await comments.on("p1", a_page("c"))
    await comments.change(comment, "new", 2)
    await comments.erase("author_id", "a", 10)
    await comments.erase("post_id", "p1", 10)
    await comments.delete("c")
    await likes.add("p1", "u")
    await likes.liked_by("u", ["p1", "p2"])
    for wanted in (PostFilter(), PostFilter(author_ids=["a"]), PostFilter(tag="t", q="title")):
        await likes.posts("u", wanted, a_page())
        await likes.posts("u", wanted, a_page("07"))
        await likes.count("u", wanted)
    await likes.of_post("p1", a_page())
    await likes.of_post("p1", a_page("07", "p1/u"))
    await likes.erase("user_id", "u", 10)
    await likes.erase("post_id", "p1", 10)
    await likes.remove("p1", "u")
    for following in (True, False):
        await follows.learn(
            FollowChanged(follow_id="u/a", follower_id="u", followed_id="a", following=following)
        )
    await follows.replace("u", {"a", "b"})
    await CallerStates(mongo).read("u", authors=["a", "b"], posts=["p1", "p2"])
    await follows.ids_followed_by("u")
    await follows.erase("u", 10)
    await notifications.add(NotificationKind.LIKE, "u", "a", post_id="p1")
    await notifications.take_back_like("u", "a", "p1")
    for unread_only in (False, True):
        await notifications.of_user("u", a_page(), unread_only=unread_only)
        await notifications.of_user("u", a_page("n"), unread_only=unread_only)
        await notifications.count("u", unread_only=unread_only)
    await notifications.unread("u")
    await notifications.mark_read("u", [])
    await notifications.mark_read("u", ["n"])
    for key in ("user_id", "actor_id", "post_id", "comment_id"):
        await notifications.erase(key, "u")
    await authors.learn(Author(id="a", username="A", name_key="a"))
    await authors.learn(Author(id="a", username="B", name_key="b", version=2))
    await authors.revise("a", 1)
    await authors.bury("a")
    await authors.by_ids(["a", "b"])
    await authors.by_names(["a", "b"])


def stages(plan: Any) -> Iterator[str]:
    """Name the stages of a plan that was chosen, and of those inside."""
    if isinstance(plan, dict):
        if isinstance(plan.get("stage"), str):
            yield plan["stage"]
        for name, inner in plan.items():
            if name not in ("rejectedPlans", "command"):
                yield from stages(inner)
    if isinstance(plan, list):
        for inner in plan:
            yield from stages(inner)


async def test_every_query_goes_by_an_index(mongo: tuple[Mongo, SentCommands]) -> None:
    opened, sent = mongo
    await ask_everything(opened)
    asked, faults = sent.taken(), []

    for command in asked:
        plan = await opened.database.command("explain", command, verbosity="queryPlanner")
        found = set(stages(plan))
        if "COLLSCAN" in found or ("find" in command and "SORT" in found):
            faults.append((command, found))

    assert faults == []
    assert {next(iter(command)) for command in asked} == set(EXPLAINED)
    assert len(asked) > 150
