"""Every query of `posts` uses an index, and no list needs a sort."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from odmantic.query import eq, or_
from pydantic import SecretStr

from postbus.posts.v1 import ListPostsRequest, NotificationKind
from postbus.users.v1 import FollowChanged
from posts.authors import AuthorCache, AuthorRepository
from posts.caller_state import CallerReader
from posts.comments import CommentRepository
from posts.follow_repository import FollowRepository
from posts.likes import LikeRepository, like_id
from posts.models import (
    DRAFT,
    PUBLISHED,
    Author,
    Comment,
    Follow,
    Like,
    Notification,
    Post,
)
from posts.notification_repository import NotificationRepository
from posts.post_filters import NEWEST, OLDEST, UPDATED, PostFilter
from posts.post_repository import PostRepository
from posts.post_search import PostSearch
from posts.tags import TagRepository
from shared.data.mongo_database import Mongo
from shared.data.pages import Page, Pages
from tests.posts.sent_commands import EXPLAINED, SentCommands


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


async def run_every_query(mongo: Mongo) -> None:
    """Run every query that the handlers run."""
    await run_post_queries(mongo)
    await run_other_queries(mongo)


async def run_post_queries(mongo: Mongo) -> None:
    posts, search, tags = PostRepository(mongo), PostSearch(mongo), TagRepository(mongo)
    for number in range(40):
        await posts.add(a_post(number))
    post = await posts.get(FIRST)
    assert post is not None
    await posts.get(post.slug)
    await posts.with_author(FIRST)
    await CallerReader(mongo).read_post(FIRST, "u")
    await posts.update(post, {"title": "Another", "tags": ["u"]})
    await posts.add_to_count(FIRST, "like_count", 1)
    await posts.add_to_counts([FIRST, a_post_id(2)], "like_count", -1)
    await posts.find(eq(Post.author_id, "a"), sort=[("_id", 1)], limit=10, without=["body"])
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
        if len(wanted.author_ids or ()) > 1:  # a feed has one order
            continue
        updated = replace(wanted, updated_since=3)
        await search.find(updated, a_page(), UPDATED)
        await search.find(updated, a_page(7, a_post_id(7)), UPDATED)
        await search.count(updated, UPDATED)
    await posts.exists(post.id)
    await posts.lock(post.id)
    await posts.delete(post)
    await tags.most_used(a_page())
    await tags.most_used(a_page(3, "t"))
    await tags.total()


async def run_other_queries(mongo: Mongo) -> None:
    comments, likes, follows = (
        CommentRepository(mongo),
        LikeRepository(mongo),
        FollowRepository(mongo),
    )
    notifications, authors = NotificationRepository(mongo), AuthorRepository(mongo, AuthorCache())
    comment = Comment(id="c", post_id="p1", author_id="a", body="b", created_at=1, updated_at=1)
    await comments.insert(comment)
    await comments.get("c")
    await comments.lock("c")
    await comments.of_post("p1", a_page())
    await comments.of_post("p1", a_page("c"))
    await comments.update(comment, "new")
    for field in (Comment.author_id, Comment.post_id):
        await comments.delete_batch(eq(field, "a"), 10)
    await comments.delete_one(eq(Comment.id, "c"))
    await likes.add("p1", "u")
    await likes.get(like_id("p1", "u"))
    await likes.lock(like_id("p1", "u"))
    for wanted in (PostFilter(), PostFilter(author_ids=["a"]), PostFilter(tag="t", q="title")):
        await likes.posts("u", wanted, a_page())
        await likes.posts("u", wanted, a_page("07"))
        await likes.count_posts("u", wanted)
    await likes.of_post("p1", a_page())
    await likes.of_post("p1", a_page("07", "p1/u"))
    for field in (Like.user_id, Like.post_id):
        await likes.delete_batch(eq(field, "u"), 10)
    await likes.remove("p1", "u")
    for following in (True, False):
        await follows.apply(
            FollowChanged(follow_id="u/a", follower_id="u", followed_id="a", following=following)
        )
    await follows.replace("u", {"a", "b"}, authors.lock)
    await CallerReader(mongo).read("u", authors=["a", "b"], posts=["p1", "p2"])
    await follows.ids_followed_by("u")
    await follows.delete_batch(or_(eq(Follow.follower_id, "u"), eq(Follow.followed_id, "u")), 10)
    await notifications.add(NotificationKind.LIKE, "u", "a", post_id="p1")
    await notifications.withdraw_like("u", "a", "p1")
    for unread_only in (False, True):
        await notifications.of_user("u", a_page(), unread_only=unread_only)
        await notifications.of_user("u", a_page("n"), unread_only=unread_only)
        await notifications.total("u", unread_only=unread_only)
    await notifications.unread("u")
    await notifications.mark_read("u", [])
    await notifications.mark_read("u", ["n"])
    for field in (Notification.user_id, Notification.actor_id, Notification.post_id):
        await notifications.delete_batch(eq(field, "u"), 10)
    await notifications.delete_many(eq(Notification.comment_id, "u"))
    await authors.upsert_if_newer(Author(id="a", username="A", name_key="a"))
    await authors.upsert_if_newer(Author(id="a", username="B", name_key="b", version=2))
    await authors.add_revision("a", 1)
    await authors.lock(["a", "b"])
    await authors.put(Author.tombstone("a"))
    await authors.by_ids(["a", "b"])
    await authors.by_names(["a", "b"])


def stages(plan: Any) -> Iterator[str]:
    """Yield the names of the stages of the winning plan, nested ones included."""
    if isinstance(plan, dict):
        if isinstance(plan.get("stage"), str):
            yield plan["stage"]
        for name, inner in plan.items():
            if name not in ("rejectedPlans", "command"):
                yield from stages(inner)
    if isinstance(plan, list):
        for inner in plan:
            yield from stages(inner)


async def test_every_query_uses_an_index(mongo: Mongo, sent: SentCommands) -> None:
    await run_every_query(mongo)
    commands, faults = sent.take(), []

    for command in commands:
        plan = await mongo.database.command("explain", command, verbosity="queryPlanner")
        found = set(stages(plan))
        if "COLLSCAN" in found or ("find" in command and "SORT" in found):
            faults.append((command, found))

    assert faults == []
    assert {next(iter(command)) for command in commands} == set(EXPLAINED)
    assert len(commands) > 150
