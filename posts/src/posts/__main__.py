"""The worker `posts` and its commands.

`python -m posts` runs the worker. `python -m posts migrate [VERSION]` migrates the database to the
newest version, or to an older one. `python -m posts repair` corrects derived data and prints each
correction.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

from postbus.users.v1 import AccountExportServiceStub, UsersServiceStub
from posts.author_handlers import AuthorHandlers, FollowHandlers
from posts.authors import AuthorCache, AuthorProjection, AuthorRepository, Resync
from posts.caller_state import CallerReader
from posts.comments import CommentHandlers, CommentRepository
from posts.erasure import PostErasure, UserErasure
from posts.export import ExportHandlers
from posts.follow_repository import FollowRepository
from posts.likes import LikeHandlers, LikeRepository
from posts.migrations import MIGRATIONS
from posts.models import create_indexes
from posts.notification_handlers import NotificationHandlers, NotificationTriggers, Notifier
from posts.notification_repository import NotificationRepository
from posts.post_handlers import PostHandlers
from posts.post_lists import PostListHandlers
from posts.post_repository import PostRepository
from posts.post_search import PostSearch
from posts.presenter import Presenter
from posts.repair import repair
from posts.settings import PostsSettings
from posts.tags import TagHandlers, TagRepository
from shared.bus import MessageBus, ServiceChannel
from shared.bus.amqp import connect
from shared.data.mongo_database import Mongo, open_mongo
from shared.data.mongo_migrations import MigrationError, migrate
from shared.data.pages import Pages
from shared.errors import NotReadyError, ServiceError
from shared.outbox.mongo_errors import driver_errors
from shared.runtime.logs import configure_logs
from shared.runtime.settings import load
from shared.runtime.worker import Application, run_worker

_CONNECT_SECONDS: Final = 3.0
"""Time for the connection of `repair` to the broker."""


def main() -> None:
    """Run the command that the arguments name."""
    settings = load(PostsSettings)
    configure_logs("posts", settings.log_format)
    match sys.argv[1:]:
        case []:
            run_worker("posts", settings, lambda bus: _application(settings, bus))
        case ["migrate"]:
            asyncio.run(_migrate(settings, None))
        case ["migrate", version] if version in map(str, range(len(MIGRATIONS) + 1)):
            asyncio.run(_migrate(settings, int(version)))
        case ["repair"]:
            asyncio.run(_repair(settings))
        case _:
            sys.exit(f"usage: python -m posts [migrate [0-{len(MIGRATIONS)}] | repair]")


@asynccontextmanager
async def _application(settings: PostsSettings, bus: MessageBus) -> AsyncIterator[Application]:
    cache = AuthorCache()
    async with (
        open_mongo(settings.mongo_url) as mongo,
        cache.subscribed(bus),
        mongo.counters.sweeping(),
    ):
        handlers = _handlers(mongo, cache, ServiceChannel(bus), Pages(settings.page_token_key))
        ready = partial(mongo.ping, len(MIGRATIONS))
        yield Application(handlers=handlers, probes={"mongodb": ready}, store=mongo)


def _handlers(
    mongo: Mongo, cache: AuthorCache, channel: ServiceChannel, pages: Pages
) -> list[object]:
    users = UsersServiceStub(channel)
    stored, follows = AuthorRepository(mongo, cache), FollowRepository(mongo)
    posts, comments, likes = PostRepository(mongo), CommentRepository(mongo), LikeRepository(mongo)
    notifications, search = NotificationRepository(mongo), PostSearch(mongo)
    authors = AuthorProjection(
        authors=stored,
        follows=follows,
        states=CallerReader(mongo),
        users=users,
        resync=Resync(mongo, stored, follows, users),
    )
    presenter, notifier = Presenter(authors), Notifier(notifications, stored)
    return [
        ExportHandlers(
            posts=posts,
            comments=comments,
            likes=likes,
            notifications=notifications,
            authors=authors,
            presenter=presenter,
            users=AccountExportServiceStub(channel),
        ),
        PostHandlers(posts, authors, presenter),
        PostListHandlers(search, likes, authors, presenter, pages),
        LikeHandlers(likes, posts, authors, presenter, pages),
        TagHandlers(TagRepository(mongo), pages),
        CommentHandlers(comments, posts, authors, presenter, pages),
        NotificationHandlers(notifications, presenter, pages),
        NotificationTriggers(notifier, notifications, posts, comments, likes),
        AuthorHandlers(stored, users),
        FollowHandlers(stored, follows, notifier),
        PostErasure(comments, likes, notifications),
        UserErasure(posts, comments, likes, follows, notifications, mongo),
    ]


async def _migrate(settings: PostsSettings, version: int | None) -> None:
    async with open_mongo(settings.mongo_url) as mongo:
        try:
            migrated = await migrate(mongo, MIGRATIONS, version)
            if migrated == len(MIGRATIONS):
                await create_indexes(mongo)
        except (MigrationError, NotReadyError, ServiceError) as error:
            sys.exit(f"posts: migrate: {error}")


async def _repair(settings: PostsSettings) -> None:
    async with open_mongo(settings.mongo_url) as mongo, connect(settings.amqp_url, "posts") as bus:
        with suppress(TimeoutError):  # then the authors are not compared
            async with asyncio.timeout(_CONNECT_SECONDS):
                await bus.wait_ready()
        with driver_errors():
            async for line in repair(mongo, UsersServiceStub(ServiceChannel(bus))):
                print(f"posts: {line}")  # noqa: T201  # the output of a command


if __name__ == "__main__":
    main()
