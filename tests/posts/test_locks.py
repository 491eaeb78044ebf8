"""Concurrent deletions: no notification, follow or content stays without the document it needs."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from odmantic.query import eq

from postbus.posts.v1 import Author as AuthorMessage
from postbus.posts.v1 import Comment as CommentMessage
from postbus.posts.v1 import (
    CommentCreated,
    CommentDeleted,
    CreatePostRequest,
    PostCreated,
    PostDeleted,
    PostLiked,
    PostStatus,
    PostUnliked,
    UserContentErasureContinued,
)
from postbus.posts.v1 import Post as PostMessage
from postbus.users.v1 import FollowChanged, UserDeleted, UsersServiceStub
from posts.author_handlers import AuthorHandlers, FollowHandlers
from posts.authors import AuthorCache, AuthorProjection, AuthorRepository, Resync
from posts.caller_state import CallerReader
from posts.comments import CommentRepository
from posts.erasure import PostErasure, UserErasure
from posts.follow_repository import FollowRepository
from posts.likes import LikeRepository
from posts.models import Author, Comment
from posts.notification_handlers import NotificationTriggers, Notifier
from posts.notification_repository import NotificationRepository
from posts.post_handlers import PostHandlers
from posts.post_repository import PostRepository
from posts.presenter import Presenter
from posts.repair import repair
from shared.access_tokens import Caller
from shared.bus import ServiceChannel
from shared.bus.memory import MemoryBus
from shared.context import Context
from shared.data.mongo_database import Mongo
from shared.errors import ServiceError
from shared.outbox.inbox import Operation
from shared.outbox.unit_of_work import current_unit_of_work, outside_unit_of_work
from tests.posts.test_query_plans import a_post

Handler = Callable[[Any, Context], Awaitable[None]]
ALICE, BOB = "018f3f6e-0000-7000-8000-0000000000a1", "018f3f6e-0000-7000-8000-0000000000b2"
CAROL = "018f3f6e-0000-7000-8000-0000000000c3"
GONE = "018f3f6e-0000-7000-8000-000000000009"
COMMENT = "018f3f6e-0000-7000-8000-00000000000c"


def a_context(user_id: str = BOB) -> Context:
    caller = Caller(user_id=user_id, session_id="s", expires_at=datetime(2100, 1, 1, tzinfo=UTC))
    return Context(name="test", caller=caller, deadline=time.monotonic() + 20, traceparent="")


class Worker:
    """The consumers of `posts` on one database. Alice has a post; Bob and Carol have none."""

    def __init__(self, mongo: Mongo) -> None:
        self.mongo = mongo
        self.authors = AuthorRepository(mongo, AuthorCache())
        self.follows = FollowRepository(mongo)
        self.posts, self.comments = PostRepository(mongo), CommentRepository(mongo)
        self.likes, self.notifications = LikeRepository(mongo), NotificationRepository(mongo)
        notifier = Notifier(self.notifications, self.authors)
        self.users = users = UsersServiceStub(ServiceChannel(MemoryBus()))
        self.resync = Resync(mongo, self.authors, self.follows, users)
        self.projection = AuthorProjection(
            authors=self.authors,
            follows=self.follows,
            states=CallerReader(mongo),
            users=users,
            resync=self.resync,
        )
        self.triggers = NotificationTriggers(
            notifier, self.notifications, self.posts, self.comments, self.likes
        )
        self.follow_handlers = FollowHandlers(self.authors, self.follows, notifier)
        self.post_erasure = PostErasure(self.comments, self.likes, self.notifications)
        self.user_erasure = UserErasure(
            self.posts, self.comments, self.likes, self.follows, self.notifications, mongo
        )
        self.post = a_post(1)
        self.post.author_id = ALICE

    async def fill(self) -> None:
        """Store three users and the post."""
        for id_, name in ((ALICE, "alice"), (BOB, "bob"), (CAROL, "carol")):
            await self.authors.upsert_if_newer(Author(id=id_, username=name, name_key=name))
        await self.posts.add(self.post)

    async def consume(self, handler: Handler, event: Any) -> list[str]:
        """Run a consumer in a unit of work; return the names of its events."""
        return await self.consume_after(handler, event)

    async def consume_after(
        self, handler: Handler, event: Any, *changes: Callable[[], Awaitable[Any]]
    ) -> list[str]:
        """Run a consumer. Its first transaction begins before `changes`, and uses the data after.

        Return the names of its events.
        """
        pending, published = list(changes), list[str]()

        async def execute() -> bytes:
            with outside_unit_of_work():
                while pending:
                    await pending.pop(0)()
            with (context := a_context()):
                await handler(event, context)
            unit = current_unit_of_work()
            assert unit is not None
            published[:] = [each.type.rpartition(".")[2] for each in unit.events]
            return b""

        key = Operation.key_of(str(time.monotonic_ns()))
        await self.mongo.perform(Operation(key=key, begin_immediately=True), execute)
        return published

    async def like(self) -> None:
        await self.likes.add(self.post.id, BOB)

    async def unlike(self) -> None:
        """Remove Bob's like, and handle the event."""
        await self.likes.remove(self.post.id, BOB)
        event = PostUnliked(post_id=self.post.id, author_id=ALICE, user_id=BOB)
        await self.consume(self.triggers.post_unliked, event)

    async def comment(self, body: str = "Text", post_id: str = "") -> CommentCreated:
        """Store Bob's comment; return the event."""
        post_id = post_id or self.post.id
        await self.comments.insert(
            Comment(
                id=COMMENT, post_id=post_id, author_id=BOB, body=body, created_at=1, updated_at=1
            )
        )
        await self.posts.add_to_count(post_id, "comment_count", 1)
        author = AuthorMessage(id=BOB)
        message = CommentMessage(id=COMMENT, post_id=post_id, body=body, author=author)
        return CommentCreated(comment_id=COMMENT, comment=message, post_author_id=ALICE)

    async def delete_comment(self) -> None:
        """Delete the comment, and handle the event."""
        await self.comments.delete_one(eq(Comment.id, COMMENT))
        await self.posts.add_to_count(self.post.id, "comment_count", -1)
        await self.consume(self.triggers.comment_deleted, CommentDeleted(comment_id=COMMENT))

    async def delete_post(self) -> None:
        """Delete the post, and erase its content."""
        post = await self.posts.get(self.post.id)
        assert post is not None
        await self.posts.delete(post)
        while await self.consume(self.post_erasure.post_deleted, PostDeleted(post_id=post.id)):
            pass

    async def delete_user(self, user_id: str) -> None:
        """Store the tombstone of a user, and erase the content."""
        deleted = UserDeleted(user_id=user_id)
        await self.consume(AuthorHandlers(self.authors, self.users).user_deleted, deleted)
        step = UserContentErasureContinued(user_id=user_id)
        while await self.consume(self.user_erasure.user_content_erasure_continued, step):
            pass

    @property
    def liked(self) -> PostLiked:
        return PostLiked(post_id=self.post.id, author_id=ALICE, user_id=BOB)

    async def visible(self) -> int:
        """Return the number of visible notifications."""
        return await self.count("notifications", hidden=False)

    async def count(self, collection: str, **query: Any) -> int:
        return await self.mongo.database[collection].count_documents(query)

    async def repaired(self) -> list[str]:
        """Return the corrections of `repair`."""
        lines = [line async for line in repair(self.mongo, self.users)][:-1]
        return [line for line in lines if not line.startswith("authors not compared")]


@pytest.fixture
async def worker(mongo: Mongo) -> Worker:
    opened = Worker(mongo)
    await opened.fill()
    return opened


async def test_like_that_is_removed_meanwhile_is_not_notified(worker: Worker) -> None:
    await worker.like()

    await worker.consume_after(worker.triggers.post_liked, worker.liked, worker.unlike)

    assert await worker.visible() == 0


async def test_like_that_is_added_again_meanwhile_stays_notified(worker: Worker) -> None:
    await worker.like()
    for _ in range(2):
        await worker.consume(worker.triggers.post_liked, worker.liked)
    await worker.likes.remove(worker.post.id, BOB)
    event = PostUnliked(post_id=worker.post.id, author_id=ALICE, user_id=BOB)

    async def like_again() -> None:
        await worker.like()
        await worker.consume(worker.triggers.post_liked, worker.liked)

    await worker.consume_after(worker.triggers.post_unliked, event, like_again)

    assert await worker.visible() == 1


async def test_comment_that_is_deleted_meanwhile_is_not_notified(worker: Worker) -> None:
    event = await worker.comment("@carol")

    await worker.consume_after(worker.triggers.comment_created, event, worker.delete_comment)

    assert (await worker.visible(), await worker.repaired()) == (0, [])


async def test_mention_in_a_post_that_is_deleted_meanwhile_is_not_notified(worker: Worker) -> None:
    message = PostMessage(id=worker.post.id, title="@carol", author=AuthorMessage(id=ALICE))
    event = PostCreated(post_id=worker.post.id, post=message)

    await worker.consume_after(worker.triggers.post_created, event, worker.delete_post)

    assert (await worker.visible(), await worker.repaired()) == (0, [])


async def test_mention_of_a_user_who_is_deleted_meanwhile_is_not_notified(worker: Worker) -> None:
    event = await worker.comment("@carol")

    async def delete_carol() -> None:
        await worker.delete_user(CAROL)

    published = await worker.consume_after(worker.triggers.comment_created, event, delete_carol)

    assert (published, await worker.repaired()) == (["NotificationCreated"], [])


@pytest.mark.parametrize("deleted", [BOB, CAROL])
async def test_follow_of_or_by_a_user_who_is_deleted_meanwhile_is_not_stored(
    worker: Worker, deleted: str
) -> None:
    event = FollowChanged(
        follow_id=f"{BOB}/{CAROL}", follower_id=BOB, followed_id=CAROL, following=True
    )

    await worker.consume_after(
        worker.follow_handlers.follow_changed, event, lambda: worker.delete_user(deleted)
    )

    assert (await worker.visible(), await worker.repaired()) == (0, [])


async def test_follow_of_a_user_without_a_stored_name_is_erased_with_the_user(
    worker: Worker,
) -> None:
    event = FollowChanged(
        follow_id=f"{BOB}/{GONE}", follower_id=BOB, followed_id=GONE, following=True
    )

    await worker.consume_after(
        worker.follow_handlers.follow_changed, event, lambda: worker.delete_user(GONE)
    )

    assert (await worker.visible(), await worker.repaired()) == (0, [])


async def test_copied_follow_of_a_user_who_is_deleted_meanwhile_is_not_stored(
    worker: Worker,
) -> None:
    async def copy(followed: set[str], _context: Context) -> None:
        await worker.follows.replace(BOB, followed, worker.authors.lock)

    await worker.consume_after(copy, {ALICE, CAROL}, lambda: worker.delete_user(CAROL))

    assert await worker.follows.ids_followed_by(BOB) == [ALICE]


async def test_draft_of_a_user_who_is_deleted_meanwhile_is_refused(worker: Worker) -> None:
    database = worker.mongo.database
    stale = Mongo(database.client[f"{database.name}_stale"])  # as the author was read before
    await AuthorRepository(stale, AuthorCache()).upsert_if_newer(
        Author(id=BOB, username="bob", name_key="bob")
    )
    projection = replace(worker.projection, states=CallerReader(stale))
    handlers = PostHandlers(worker.posts, projection, Presenter(projection))
    request = CreatePostRequest(title="Draft", status=PostStatus(PostStatus.DRAFT))

    async def create(_event: object, context: Context) -> None:
        await handlers.create_post(request, context)

    with pytest.raises(ServiceError, match="SESSION_REVOKED"):
        await worker.consume_after(create, None, lambda: worker.delete_user(BOB))

    assert await worker.count("posts", author_id=BOB) == 0
    await database.client.drop_database(stale.database.name)


async def test_content_that_is_stored_after_the_erasure_of_its_post_is_deleted(
    worker: Worker,
) -> None:
    commented = await worker.comment("@carol", GONE)
    await worker.likes.add(GONE, BOB)
    liked = PostLiked(post_id=GONE, author_id=ALICE, user_id=BOB)

    published = await worker.consume(worker.triggers.comment_created, commented)
    published += await worker.consume(worker.triggers.post_liked, liked)

    assert published == []
    assert [await worker.count(name) for name in ("comments", "likes")] == [0, 0]
    assert (await worker.visible(), await worker.repaired()) == (0, [])


async def test_content_that_is_stored_after_the_erasure_of_its_author_is_erased(
    worker: Worker,
) -> None:
    await worker.delete_user(BOB)
    commented = await worker.comment("@carol")
    await worker.like()
    message = PostMessage(id=worker.post.id, title="@carol", author=AuthorMessage(id=BOB))
    created = PostCreated(post_id=worker.post.id, post=message)

    published = [
        await worker.consume(worker.triggers.comment_created, commented),
        await worker.consume(worker.triggers.post_liked, worker.liked),
        await worker.consume(worker.triggers.post_created, created),
    ]

    assert published == [["UserContentErasureContinued"]] * 3
    assert await worker.visible() == 0
