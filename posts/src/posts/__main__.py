"""`python -m posts`: run the worker. `python -m posts migrate`: create the indexes."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from posts.authors import AuthorCards
from posts.handlers import PostHandlers
from posts.repository import AuthorRepository, PostRepository
from posts.settings import PostsSettings
from shared.messagebus import MessageBus
from shared.mongo import open_mongo
from shared.settings import load
from shared.worker import Application, run_worker


def main() -> None:
    """Do what the command line says."""
    settings = load(PostsSettings)
    match sys.argv[1:]:
        case []:
            run_worker("posts", settings, lambda bus: _application(settings, bus))
        case ["migrate"]:
            asyncio.run(_migrate(settings))
        case _:
            sys.exit("usage: python -m posts [migrate]")


@asynccontextmanager
async def _application(settings: PostsSettings, bus: MessageBus) -> AsyncIterator[Application]:
    async with open_mongo(settings.mongo_url) as mongo:
        authors = AuthorCards(AuthorRepository(mongo), bus)
        posts = PostHandlers(PostRepository(mongo), authors)
        yield Application(handlers=[posts, authors], probes={"mongodb": mongo.ping}, store=mongo)


async def _migrate(settings: PostsSettings) -> None:
    async with open_mongo(settings.mongo_url) as mongo:
        await mongo.create_indexes()
        await PostRepository(mongo).create_indexes()


if __name__ == "__main__":
    main()
