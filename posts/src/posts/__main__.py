"""`python -m posts`: run the worker. `python -m posts migrate [VERSION]`: bring the database up to
date, or to an older version. `python -m posts repair`: set right what is wrong, and say what.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from postbus.users.v1 import UsersServiceStub
from posts.author_cards import AuthorCards
from posts.authors import AuthorRepository
from posts.caller_state import CallerStates
from posts.card_cache import CardCache
from posts.comment_handlers import CommentHandlers
from posts.comments import CommentRepository
from posts.erasure import Erasure
from posts.follows import FollowRepository
from posts.handlers import PostHandlers
from posts.likes import LikeRepository
from posts.lists import ListHandlers
from posts.migrations import MIGRATIONS
from posts.notification_handlers import NotificationHandlers
from posts.notifications import NotificationRepository
from posts.repair import repair
from posts.repository import PostRepository
from posts.resync import Resync
from posts.search import PostSearch
from posts.settings import PostsSettings
from posts.tags import TagRepository
from posts.views import Views
from shared.bus import MessageBus, ServiceChannel
from shared.data.mongo_database import Mongo, open_mongo
from shared.data.mongo_migrations import migrate
from shared.data.pages import Pages
from shared.runtime.settings import load
from shared.runtime.worker import Application, run_worker


def main() -> None:
    """Run the command of the command line."""
    settings = load(PostsSettings)
    match sys.argv[1:]:
        case []:
            run_worker("posts", settings, lambda bus: _application(settings, bus))
        case ["migrate"]:
            asyncio.run(_migrate(settings, len(MIGRATIONS)))
        case ["migrate", version] if version in map(str, range(len(MIGRATIONS) + 1)):
            asyncio.run(_migrate(settings, int(version)))
        case ["repair"]:
            asyncio.run(_repair(settings))
        case _:
            sys.exit(f"usage: python -m posts [migrate [0-{len(MIGRATIONS)}] | repair]")


@asynccontextmanager
async def _application(settings: PostsSettings, bus: MessageBus) -> AsyncIterator[Application]:
    cache = CardCache()
    async with open_mongo(settings.mongo_url) as mongo, cache.hearing(bus):
        authors = _author_cards(mongo, bus, cache)
        handlers = _handlers(mongo, authors, Pages(settings.page_token_key))
        yield Application(handlers=handlers, probes={"mongodb": mongo.ping}, store=mongo)


def _author_cards(mongo: Mongo, bus: MessageBus, cache: CardCache) -> AuthorCards:
    authors, follows = AuthorRepository(mongo), FollowRepository(mongo)
    users = UsersServiceStub(ServiceChannel(bus))
    return AuthorCards(
        authors=authors,
        cache=cache,
        follows=follows,
        states=CallerStates(mongo),
        users=users,
        resync=Resync(mongo, authors, follows, users),
    )


def _handlers(mongo: Mongo, authors: AuthorCards, pages: Pages) -> list[object]:
    posts, comments, likes = PostRepository(mongo), CommentRepository(mongo), LikeRepository(mongo)
    follows, notifications = FollowRepository(mongo), NotificationRepository(mongo)
    cards = AuthorRepository(mongo)
    views = Views(authors, posts)
    return [
        authors,
        PostHandlers(posts=posts, likes=likes, authors=authors, views=views),
        ListHandlers(
            posts=posts,
            search=PostSearch(mongo),
            likes=likes,
            tags=TagRepository(mongo),
            authors=authors,
            views=views,
            pages=pages,
        ),
        CommentHandlers(comments=comments, posts=posts, authors=authors, views=views, pages=pages),
        NotificationHandlers(
            notifications=notifications,
            posts=posts,
            comments=comments,
            authors=cards,
            follows=follows,
            likes=likes,
            views=views,
            pages=pages,
        ),
        Erasure(
            posts=posts,
            comments=comments,
            likes=likes,
            follows=follows,
            notifications=notifications,
            authors=cards,
            cache=authors.cache,
        ),
    ]


async def _migrate(settings: PostsSettings, version: int) -> None:
    async with open_mongo(settings.mongo_url) as mongo:
        await migrate(mongo, MIGRATIONS, version)
        if version < len(MIGRATIONS):
            return
        await mongo.create_indexes()
        for repository in (
            PostRepository,
            CommentRepository,
            LikeRepository,
            FollowRepository,
            NotificationRepository,
            AuthorRepository,
        ):
            await repository(mongo).create_indexes()


async def _repair(settings: PostsSettings) -> None:
    async with open_mongo(settings.mongo_url) as mongo:
        async for finding in repair(mongo):
            print(f"posts: {finding}")  # noqa: T201  # a command's answer


if __name__ == "__main__":
    main()
