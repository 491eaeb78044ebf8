"""Bounds of one transaction of a consumer, and of the projection of users."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from postbus.bus.v1 import Reply, Request
from postbus.posts.v1 import ListFeedRequest, NotificationKind, PostDeleted
from postbus.posts.v1 import UserContentErasureContinued as UserErasureStep
from postbus.users.v1 import (
    BatchGetUsersResponse,
    FollowChanged,
    ListFollowedIdsResponse,
    Profile,
    UserDeleted,
    UserProfileUpdated,
    UserRegistered,
    UsersServiceStub,
)
from postbus_runtime.reasons import Reason
from posts.author_handlers import AuthorHandlers, FollowHandlers
from posts.authors import AuthorCache, AuthorProjection, AuthorRepository, Resync
from posts.caller_state import CallerReader
from posts.comments import CommentRepository
from posts.erasure import PostErasure, UserErasure
from posts.follow_repository import FollowRepository
from posts.likes import LikeRepository
from posts.models import Author, Comment, Like
from posts.notification_handlers import Notifier
from posts.notification_repository import NotificationRepository
from posts.post_lists import PostListHandlers
from posts.post_repository import PostRepository
from posts.post_search import PostSearch
from posts.presenter import Presenter
from posts.tags import TagRepository
from shared.access_tokens import Caller
from shared.bus import ServiceChannel
from shared.bus.memory import MemoryBus
from shared.bus.reply import error_reply
from shared.context import Context
from shared.data.mongo_database import Mongo
from shared.data.pages import Pages
from shared.errors import Code, Outcome, ServiceError
from shared.outbox.inbox import Operation
from shared.outbox.unit_of_work import current_unit_of_work
from shared.wire import decode, encode
from tests.posts.sent_commands import SentCommands
from tests.posts.test_query_plans import a_post

ALICE, BOB = "018f3f6e-0000-7000-8000-0000000000a1", "018f3f6e-0000-7000-8000-0000000000b2"
POST = "018f3f6e-0000-7000-8000-000000000001"


@pytest.fixture
def authors(mongo: Mongo) -> AuthorRepository:
    return AuthorRepository(mongo, AuthorCache())


@pytest.fixture
def follow_handlers(mongo: Mongo, authors: AuthorRepository) -> FollowHandlers:
    notifier = Notifier(NotificationRepository(mongo), authors)
    return FollowHandlers(authors, FollowRepository(mongo), notifier)


def a_context(user_id: str = ALICE, **fields: Any) -> Context:
    caller = Caller(user_id=user_id, session_id="s", expires_at=datetime(2100, 1, 1, tzinfo=UTC))
    return Context(
        name="test", caller=caller, deadline=time.monotonic() + 20, traceparent="", **fields
    )


async def consume(
    mongo: Mongo, handle: Callable[[Context], Awaitable[None]], *, late: bool = False
) -> list[str]:
    """Run a consumer in a unit of work; return the names of the published events."""
    published: list[str] = []

    async def handler() -> bytes:
        context = a_context()
        context.restart(late=late)
        with context:
            await handle(context)
        unit = current_unit_of_work()
        assert unit is not None
        published[:] = [event.type.rpartition(".")[2] for event in unit.events]
        return b""

    await mongo.perform(Operation(key=Operation.key_of(str(time.monotonic_ns()))), handler)
    return published


async def count(mongo: Mongo, collection: str, **query: Any) -> int:
    return await mongo.database[collection].count_documents(query)


def an_author(id_: str = ALICE, **fields: Any) -> Author:
    return Author(id=id_, username="Name", name_key="name", **fields)


def a_projection(mongo: Mongo, authors: AuthorRepository, bus: MemoryBus) -> AuthorProjection:
    follows, users = FollowRepository(mongo), UsersServiceStub(ServiceChannel(bus))
    return AuthorProjection(
        authors=authors,
        follows=follows,
        states=CallerReader(mongo),
        users=users,
        resync=Resync(mongo, authors, follows, users),
    )


async def fill(mongo: Mongo, number: int, *, post_id: str, user_id: str) -> None:
    """Store comments, likes and notifications."""
    ids = [f"{post_id}/{each}" for each in range(number)]
    await mongo.database["comments"].insert_many(
        Comment(
            id=id_, post_id=post_id, author_id=user_id, body="x", created_at=1, updated_at=1
        ).model_dump_doc()
        for id_ in ids
    )
    await mongo.database["likes"].insert_many(
        Like(id=id_, post_id=post_id, user_id=user_id, place="1").model_dump_doc() for id_ in ids
    )
    await mongo.database["notifications"].insert_many(
        {
            "_id": id_,
            "key": id_,
            "user_id": user_id,
            "actor_id": "x",
            "post_id": post_id,
            "comment_id": "",
            "kind": 1,
            "created_at": 1,
            "read": False,
            "hidden": False,
            "expires_at": datetime(2100, 1, 1, tzinfo=UTC),
        }
        for id_ in ids
    )


async def test_content_of_a_deleted_post_is_erased_100_documents_at_a_time(mongo: Mongo) -> None:
    erasure = PostErasure(
        CommentRepository(mongo), LikeRepository(mongo), NotificationRepository(mongo)
    )
    await fill(mongo, 150, post_id=POST, user_id=BOB)

    steps = []
    for _ in range(3):
        event = PostDeleted(post_id=POST)
        published = await consume(mongo, lambda context: erasure.post_deleted(event, context))  # noqa: B023  # awaited in the loop
        names = ("comments", "likes", "notifications")
        steps.append((published, [await count(mongo, name, post_id=POST) for name in names]))

    continued = ["PostErasureContinued"]
    assert steps == [(continued, [50] * 3), (continued, [0] * 3), ([], [0] * 3)]


async def test_content_of_a_deleted_user_is_erased_in_bounded_steps(mongo: Mongo) -> None:
    posts, follows = PostRepository(mongo), FollowRepository(mongo)
    erasure = UserErasure(
        posts,
        CommentRepository(mongo),
        LikeRepository(mongo),
        follows,
        NotificationRepository(mongo),
        mongo,
    )
    other = a_post(99)
    other.author_id = ALICE
    await posts.add(other)
    for name in ("comment_count", "like_count"):
        await posts.add_to_count(other.id, name, 151)
    for number in range(1, 16):
        post = a_post(number)
        post.author_id, post.title = BOB, f"Title {number}"
        await posts.add(post)
    await fill(mongo, 150, post_id=other.id, user_id=BOB)
    await mongo.database["follows"].insert_many(
        {"_id": f"{BOB}/{n}", "follower_id": BOB, "followed_id": str(n)} for n in range(150)
    )

    step = UserErasureStep(user_id=BOB)
    published = await consume(
        mongo, lambda context: erasure.user_content_erasure_continued(step, context)
    )

    left = [await count(mongo, name, author_id=BOB) for name in ("posts", "comments")]
    left += [await count(mongo, name, user_id=BOB) for name in ("likes", "notifications")]
    counted = await posts.get(other.id)
    assert left == [5, 50, 50, 50]
    assert await count(mongo, "follows") == 50
    assert counted is not None
    assert (counted.comment_count, counted.like_count) == (51, 51)
    assert published.count("CommentDeleted") == 100
    assert published[-1] == "UserContentErasureContinued"


async def test_feed_reads_at_most_100_authors_in_one_query(
    mongo: Mongo, sent: SentCommands, authors: AuthorRepository
) -> None:
    projection = a_projection(mongo, authors, MemoryBus())
    await authors.upsert_if_newer(an_author())
    await mongo.database["follows"].insert_many(
        {"_id": f"{ALICE}/{n}", "follower_id": ALICE, "followed_id": str(n)} for n in range(250)
    )
    lists = PostListHandlers(
        PostSearch(mongo),
        LikeRepository(mongo),
        projection,
        Presenter(projection),
        Pages(SecretStr("key")),
    )
    sent.take()

    await lists.list_feed(ListFeedRequest(), a_context())

    sizes = [
        len(query["author_id"]["$in"])
        for command in sent.take()
        if command.get("find") == "posts"
        for query in command["filter"]["$and"]
        if "author_id" in query
    ]
    assert sorted(sizes) == [50, 100, 100]


async def test_projection_answers_after_a_second_if_users_does_not_respond(
    mongo: Mongo, authors: AuthorRepository
) -> None:
    bus = MemoryBus()

    async def hang(_route: str, _body: bytes, _service: str) -> bytes:
        await asyncio.Event().wait()
        return b""

    routes = ["ListFollowedIds", "BatchGetUsers"]
    await bus.serve("users", [f"postbus.users.v1.UsersService.{each}" for each in routes], hang)
    projection = a_projection(mongo, authors, bus)
    await authors.upsert_if_newer(an_author())
    await projection.follows.replace(ALICE, {BOB}, authors.lock)

    context = a_context(caller_revision=1)
    async with asyncio.timeout(5):
        author, followed = await asyncio.gather(
            projection.author_of_caller(context), projection.followed_by_caller(context)
        )

    assert (author.username, followed) == ("Name", [BOB])


async def test_each_call_to_users_has_a_budget_of_a_second(
    mongo: Mongo, authors: AuthorRepository
) -> None:
    bus, budgets = MemoryBus(), []

    async def answer(route: str, body: bytes, _service: str) -> bytes:
        budgets.append((route.rpartition(".")[2], decode(Request, body).budget_ms))
        return encode(Reply())

    routes = ["ListFollowedIds", "BatchGetUsers", "GetUser"]
    await bus.serve("users", [f"postbus.users.v1.UsersService.{each}" for each in routes], answer)
    await authors.upsert_if_newer(an_author(version=1))
    projection, context = a_projection(mongo, authors, bus), a_context(caller_revision=1)
    handlers = AuthorHandlers(authors, projection.users)
    ahead = UserProfileUpdated(user_id=ALICE, username="ahead", version=2_000_000)

    for call in (
        projection.find_id("nobody"),
        projection.followed_by_caller(context),
        projection.author_of_caller(context),
        projection.resync.run(context),
        handlers.user_profile_updated(ahead, context),
    ):
        with suppress(ServiceError):  # the answers are empty
            await call

    called = [route for route, _ in budgets]
    assert called == [
        *("GetUser", "ListFollowedIds", "BatchGetUsers"),
        *("BatchGetUsers", "ListFollowedIds", "BatchGetUsers"),
    ]
    assert all(0 < budget <= 1000 for _, budget in budgets), budgets


async def failing_users(code: int, reason: str = "FAILED") -> MemoryBus:
    """Return a bus on which `users` answers every call with an error of this code."""
    bus, error = MemoryBus(), ServiceError(Reason(reason, code), "Failed.")

    async def fail(_route: str, _body: bytes, _service: str) -> bytes:
        return error_reply(error)

    routes = ["ListFollowedIds", "BatchGetUsers", "GetUser"]
    await bus.serve("users", [f"postbus.users.v1.UsersService.{each}" for each in routes], fail)
    return bus


async def test_projection_answers_whatever_error_users_gives(
    mongo: Mongo, authors: AuthorRepository
) -> None:
    await authors.upsert_if_newer(an_author())
    context = a_context(caller_revision=1)
    for code in (code for code in Code if code not in (0, Code.UNAUTHENTICATED)):
        projection = a_projection(mongo, authors, await failing_users(code))
        await projection.follows.replace(ALICE, {BOB}, authors.lock)

        author = await projection.author_of_caller(context)
        followed = await projection.followed_by_caller(context)
        shown = (await projection.messages_for([ALICE, BOB], context)).by_id

        assert (author.username, followed) == ("Name", [BOB]), code
        assert (shown[ALICE].username, shown[BOB].username) == ("Name", ""), code


async def test_user_that_the_projection_lacks_is_unavailable_whatever_error_users_gives(
    mongo: Mongo, authors: AuthorRepository
) -> None:
    """The user may exist: an absent author is no proof."""
    for code in (code for code in Code if code not in (0, Code.UNAUTHENTICATED)):
        projection = a_projection(mongo, authors, await failing_users(code))
        for read in (projection.find_id("nobody"), projection.author_of_caller(a_context())):
            with pytest.raises(ServiceError) as raised:
                await read
            error = raised.value
            assert (error.code, error.outcome) == (Code.UNAVAILABLE, Outcome.NO_EFFECT), code
            assert code == Code.UNAVAILABLE or error.reason == "USERS_UNAVAILABLE"


async def test_user_that_is_unknown_is_not_found(mongo: Mongo, authors: AuthorRepository) -> None:
    projection = a_projection(mongo, authors, await failing_users(Code.NOT_FOUND, "USER_NOT_FOUND"))

    assert await projection.find_id("nobody") is None


async def test_session_that_users_refuses_is_refused(
    mongo: Mongo, authors: AuthorRepository
) -> None:
    projection = a_projection(mongo, authors, await failing_users(Code.UNAUTHENTICATED))
    await authors.upsert_if_newer(an_author())
    context = a_context(caller_revision=1)

    for read in (
        projection.author_of_caller(context),
        projection.followed_by_caller(context),
        projection.messages_for([ALICE], context),
    ):
        with pytest.raises(ServiceError) as raised:
            await read
        assert raised.value.code is Code.UNAUTHENTICATED


async def test_older_version_does_not_replace_a_stored_author(
    mongo: Mongo, authors: AuthorRepository
) -> None:
    handlers = AuthorHandlers(authors, UsersServiceStub(ServiceChannel(MemoryBus())))
    names = []
    for version, name in ((2, "two"), (1, "one"), (3, "three")):
        event = UserProfileUpdated(user_id=ALICE, username=name, version=version)
        await consume(mongo, lambda context: handlers.user_profile_updated(event, context))  # noqa: B023  # awaited in the loop
        names.append((await authors.by_ids([ALICE]))[ALICE].username)

    assert names == ["two", "two", "three"]


async def test_late_profile_event_stores_only_its_revision(
    mongo: Mongo, authors: AuthorRepository
) -> None:
    await authors.upsert_if_newer(an_author())
    event = UserProfileUpdated(user_id=ALICE, username="late", version=9, revision=1)
    handlers = AuthorHandlers(authors, UsersServiceStub(ServiceChannel(MemoryBus())))

    await consume(mongo, lambda context: handlers.user_profile_updated(event, context), late=True)

    author = (await authors.by_ids([ALICE]))[ALICE]
    assert (author.username, author.revision) == ("Name", 1)


@pytest.mark.parametrize(("true", "kept"), [(7, 7), (2_000_007, 2_000_007)])
async def test_version_far_ahead_is_accepted_only_if_the_owner_has_it(
    mongo: Mongo, authors: AuthorRepository, true: int, kept: int
) -> None:
    await authors.upsert_if_newer(an_author(version=7))
    profile = Profile(id=ALICE, username="ahead", version=true)
    bus = MemoryBus()

    async def reply(_route: str, _body: bytes, _service: str) -> bytes:
        return encode(Reply(payload=encode(BatchGetUsersResponse(profiles=[profile]))))

    await bus.serve("users", ["postbus.users.v1.UsersService.BatchGetUsers"], reply)
    handlers = AuthorHandlers(authors, UsersServiceStub(ServiceChannel(bus)))
    event = UserProfileUpdated(user_id=ALICE, username="ahead", version=2_000_007)

    with nullcontext() if true == event.version else pytest.raises(ServiceError, match="FORGED"):
        await consume(mongo, lambda context: handlers.user_profile_updated(event, context))

    assert (await authors.by_ids([ALICE]))[ALICE].version == kept


async def test_million_lost_versions_are_accepted_without_a_question(
    mongo: Mongo, authors: AuthorRepository
) -> None:
    await authors.upsert_if_newer(an_author(version=7))
    handlers = AuthorHandlers(authors, UsersServiceStub(ServiceChannel(MemoryBus())))
    event = UserProfileUpdated(user_id=ALICE, username="ahead", version=1_000_007)

    await consume(mongo, lambda context: handlers.user_profile_updated(event, context))

    assert (await authors.by_ids([ALICE]))[ALICE].username == "ahead"


async def test_no_later_event_restores_a_deleted_author(
    mongo: Mongo, authors: AuthorRepository
) -> None:
    handlers = AuthorHandlers(authors, UsersServiceStub(ServiceChannel(MemoryBus())))
    await authors.upsert_if_newer(an_author(BOB))
    deleted = UserDeleted(user_id=BOB)
    published = await consume(mongo, lambda context: handlers.user_deleted(deleted, context))
    profile = UserProfileUpdated(user_id=BOB, username="back", version=100)
    await consume(mongo, lambda context: handlers.user_profile_updated(profile, context))
    registered = UserRegistered(user_id=BOB, username="back")
    await consume(mongo, lambda context: handlers.user_registered(registered, context))

    author = (await authors.by_ids([BOB]))[BOB]
    assert (author.deleted, author.username) == (True, "")
    assert published == ["UserContentErasureContinued"]


def a_follow(revision: int, *, following: bool = True) -> FollowChanged:
    return FollowChanged(
        follow_id=f"{ALICE}/{BOB}",
        follower_id=ALICE,
        followed_id=BOB,
        following=following,
        version=revision,
        follower_revision=revision,
    )


async def test_follow_event_is_applied_once_even_after_the_inbox_has_forgotten_it(
    mongo: Mongo, follow_handlers: FollowHandlers
) -> None:
    for event in (a_follow(1), a_follow(2, following=False), a_follow(1)):
        await consume(mongo, lambda context: follow_handlers.follow_changed(event, context))  # noqa: B023  # awaited in the loop

    assert await count(mongo, "follows") == 0


async def test_late_follow_event_is_not_applied(
    mongo: Mongo, follow_handlers: FollowHandlers, authors: AuthorRepository
) -> None:
    event = a_follow(1)
    await authors.upsert_if_newer(an_author())
    await consume(mongo, lambda context: follow_handlers.follow_changed(event, context), late=True)

    assert await count(mongo, "follows") == 0
    assert (await authors.by_ids([ALICE]))[ALICE].revision == 1


async def test_follow_of_a_deleted_user_is_neither_stored_nor_notified(
    mongo: Mongo, follow_handlers: FollowHandlers, authors: AuthorRepository
) -> None:
    await authors.upsert_if_newer(an_author())
    await authors.put(Author.tombstone(BOB))
    event = a_follow(1)

    published = await consume(mongo, lambda context: follow_handlers.follow_changed(event, context))

    assert (published, await count(mongo, "follows"), await count(mongo, "notifications")) == (
        [],
        0,
        0,
    )


async def test_follow_is_notified_once_and_kept_for_90_days(
    mongo: Mongo, follow_handlers: FollowHandlers
) -> None:
    published = []
    for event in (a_follow(1), a_follow(2)):
        published += await consume(
            mongo,
            lambda context: follow_handlers.follow_changed(event, context),  # noqa: B023  # awaited in the loop
        )

    [notification] = await mongo.database["notifications"].find().to_list()
    left = notification["expires_at"].replace(tzinfo=UTC) - datetime.now(UTC)
    assert published == ["NotificationCreated"]
    assert timedelta(days=89, hours=23) < left <= timedelta(days=90)


async def test_no_user_is_notified_of_an_own_action_or_by_a_deleted_user(
    mongo: Mongo, authors: AuthorRepository
) -> None:
    notifier = Notifier(NotificationRepository(mongo), authors)
    await authors.put(Author.tombstone(BOB))
    like = NotificationKind.LIKE

    published = []
    for user, actor in ((ALICE, ALICE), (ALICE, BOB), (BOB, ALICE)):
        published += await consume(
            mongo,
            lambda _: notifier.notify(like, user, actor, post_id=POST),  # noqa: B023  # awaited in the loop
        )

    assert (published, await count(mongo, "notifications")) == ([], 0)


async def test_like_is_stored_and_counted_once(mongo: Mongo) -> None:
    likes = LikeRepository(mongo)

    added = [await likes.add(POST, ALICE) for _ in range(2)]
    removed = [await likes.remove(POST, ALICE) for _ in range(2)]

    assert (added, removed) == ([True, False], [True, False])


async def test_concurrent_change_of_a_comment_is_not_overwritten(mongo: Mongo) -> None:
    comments = CommentRepository(mongo)
    read = Comment(id="c", post_id=POST, author_id=ALICE, body="first", created_at=1, updated_at=1)
    await comments.insert(read)

    changed = [await comments.update(read, body) for body in ("second", "third")]

    assert [comment and comment.body for comment in changed] == ["second", None]
    current = await comments.get("c")
    assert current is not None
    assert (current.body, current.version) == ("second", 2)


async def test_update_of_a_post_keeps_concurrent_counts(mongo: Mongo) -> None:
    posts, post = PostRepository(mongo), a_post(1)
    await posts.add(post)
    await posts.add_to_count(post.id, "like_count", 1)  # after the post was read

    await posts.update(post, {"title": "New"})

    current = await posts.get(post.id)
    assert current is not None
    assert (current.title, current.like_count, current.version) == ("New", 1, 2)


async def test_tag_is_deleted_with_its_last_post(mongo: Mongo) -> None:
    tags = TagRepository(mongo)
    await tags.count_posts({}, {"a": "A", "b": "B"})
    await tags.count_posts({}, {"a": "A"})

    await tags.count_posts({"a": "A", "b": "B"}, {})

    left = await mongo.database["tags"].find().to_list()
    assert [(tag["_id"], tag["post_count"]) for tag in left] == [("a", 1)]


async def test_deleted_caller_is_refused(mongo: Mongo, authors: AuthorRepository) -> None:
    projection = a_projection(mongo, authors, MemoryBus())
    await authors.put(Author.tombstone(ALICE))

    for call in (
        projection.author_of_caller(a_context()),
        projection.followed_by_caller(a_context()),
        projection.messages_for([BOB], a_context()),
    ):
        with pytest.raises(ServiceError, match="SESSION_REVOKED"):
            await call


async def users_with(follows: list[str], revision: int) -> MemoryBus:
    """Return a bus with a worker `users`, in which Alice has a new name and these follows."""
    bus, prefix = MemoryBus(), "postbus.users.v1.UsersService"
    profile = Profile(id=ALICE, username="New", version=9)
    replies = {
        f"{prefix}.BatchGetUsers": encode(BatchGetUsersResponse(profiles=[profile])),
        f"{prefix}.ListFollowedIds": encode(ListFollowedIdsResponse(ids=follows)),
    }

    async def reply(route: str, _body: bytes, _service: str) -> bytes:
        return encode(Reply(payload=replies[route], caller_revision=revision))

    await bus.serve("users", list(replies), reply)
    return bus


async def copy(
    mongo: Mongo, authors: AuthorRepository, revision: int, *, follows: list[str]
) -> Author:
    """Copy Alice from `users` with a revision; return her stored data."""
    projection = a_projection(mongo, authors, await users_with(follows, revision))
    operation_id = str(time.monotonic_ns())
    context = a_context(caller_revision=revision, operation_id=operation_id)
    with context:
        await projection.resync.run(context)
    return (await authors.by_ids([ALICE]))[ALICE]


async def test_copy_of_a_user_does_not_replace_later_changes(
    mongo: Mongo, authors: AuthorRepository
) -> None:
    await authors.upsert_if_newer(an_author(revision=3, ahead=[7]))

    before = await copy(mongo, authors, 5, follows=[BOB])
    after = await copy(mongo, authors, 7, follows=[BOB])

    assert (before.username, before.revision, before.ahead) == ("Name", 3, [7])
    assert (after.username, after.revision, after.ahead) == ("New", 7, None)


async def test_copy_of_a_user_does_not_restore_a_tombstone(
    mongo: Mongo, authors: AuthorRepository
) -> None:
    await authors.put(Author.tombstone(ALICE))

    author = await copy(mongo, authors, 5, follows=[BOB])

    assert (author.deleted, author.revision, await count(mongo, "follows")) == (True, 0, 0)


async def test_partial_copy_of_many_follows_is_continued_by_the_next_call(
    mongo: Mongo, authors: AuthorRepository
) -> None:
    await authors.upsert_if_newer(an_author(ahead=[2]))
    many = [str(number) for number in range(250)]

    steps = []
    for _ in range(2):
        author = await copy(mongo, authors, 2, follows=many)
        steps.append((author.revision, author.ahead, await count(mongo, "follows")))

    assert steps == [(0, [2], 200), (2, None, 250)]


async def test_revision_far_ahead_is_refused(authors: AuthorRepository) -> None:
    """Otherwise the author would count as incomplete for ever."""
    await authors.upsert_if_newer(an_author(revision=3))

    for revision in (4 + 1_000_000, 2**63 - 1, 2**64 - 1):
        with pytest.raises(ServiceError, match="FORGED"):
            await authors.add_revision(ALICE, revision)
    with pytest.raises(ServiceError, match="FORGED"):
        await authors.add_revision(BOB, 1_000_001)
    assert await authors.add_revision(ALICE, 3 + 1_000_000)
