"""A worker of the contract without a database; the dispatcher verifies and validates as usual."""

import asyncio
import os
from importlib import import_module
from typing import Any

import uvloop
from pydantic import SecretStr

from postbus.posts.v1 import (
    Author,
    CreatePostRequest,
    CreatePostResponse,
    Post,
    PostsServiceBase,
    PostStatus,
)
from postbus.registry import METHODS, Method
from shared.access_tokens import TokenVerifier
from shared.bus import MessagePattern
from shared.bus.amqp import connect
from shared.context import Context
from shared.runtime import gc_tuning
from shared.runtime.worker import Application, serve

NEW_ID = "018f3b6e-7b1a-7c44-9d0e-5f2a1b3c4d5e"


class Posts:
    """Returns the post with an id."""

    @MessagePattern(PostsServiceBase.create_post)
    async def create_post(self, request: CreatePostRequest, context: Context) -> CreatePostResponse:
        return CreatePostResponse(
            post=Post(
                id=NEW_ID,
                author=Author(id=context.user_id, username="ada.lovelace"),
                title=request.title,
                summary=request.summary,
                body=request.body,
                status=PostStatus.PUBLISHED,
                version=1,
            )
        )


def _empty(method: Method) -> Any:
    """Return a handler that returns an empty response."""
    module, service, name = method.handler.rsplit(".", 2)

    async def handler(_self: object, _request: Any, _context: Context) -> Any:
        return method.response()

    async def streaming(_self: object, _request: Any, _context: Context) -> Any:
        yield method.response()

    chosen = streaming if method.streams else handler
    return MessagePattern(getattr(getattr(import_module(module), service), name))(chosen)


for _method in METHODS.values():
    if _method.worker == "posts" and not _method.name.endswith(".CreatePost"):
        setattr(Posts, _method.handler, _empty(_method))


async def main() -> None:
    verifier = TokenVerifier(os.environ["POSTBUS_VERIFICATION_KEYS"])
    application = Application(handlers=[Posts()], probes={})
    url = SecretStr(os.environ["BENCH_URL"])
    async with (
        connect(url, "users"),  # owns the exchange of ended sessions, which the gateway reads
        connect(url, "posts") as bus,
        serve("posts", application, bus, verifier),
    ):
        gc_tuning.freeze()
        print("READY", flush=True)
        await asyncio.Future()


if __name__ == "__main__":
    uvloop.run(main())
