"""Postbus as applications use it: a generated stub calls a handler; both ends validate."""

import json
import time
from importlib import import_module
from typing import Any

import loop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm
from loop import POST, URL, arguments, closed_loop, for_ever
from pydantic import SecretStr

from postbus.posts.v1 import (
    Author,
    ListPostsRequest,
    ListPostsResponse,
    Post,
    PostsServiceBase,
    PostsServiceStub,
)
from postbus.registry import METHODS, Method
from shared.access_tokens import TokenVerifier
from shared.bus import Call, MessagePattern, ServiceChannel
from shared.bus.amqp import connect
from shared.bus.reply import payload_reply
from shared.context import Context
from shared.runtime import gc_tuning
from shared.runtime.worker import Application, serve

# The request and the response have about 300 bytes each.
_ASKED = ListPostsRequest(page_size=20, page_token=(POST["body"] * 2)[:280])


class Posts:
    """Returns one post for ListPosts; the other methods need a handler too."""

    @MessagePattern(PostsServiceBase.list_posts)
    async def list_posts(self, request: ListPostsRequest, _context: Context) -> ListPostsResponse:
        post = Post(
            id=loop.NEW_ID,
            author=Author(id=loop.NEW_ID, username=POST["author"]),
            title=POST["title"],
            body=request.page_token[:180],
            version=1,
        )
        return ListPostsResponse(posts=[post])


def _idle(method: Method) -> Any:
    """Return a handler that is never called."""
    module, service, name = method.handler.rsplit(".", 2)

    async def handler(_self: object, _request: Any, _context: Context) -> Any:
        return method.response()

    async def streaming(_self: object, _request: Any, _context: Context) -> Any:
        yield method.response()

    chosen = streaming if method.streams else handler
    return MessagePattern(getattr(getattr(import_module(module), service), name))(chosen)


for _method in METHODS.values():
    if _method.worker == "posts" and not _method.name.endswith(".ListPosts"):
        setattr(Posts, _method.handler, _idle(_method))


def _verifier() -> TokenVerifier:
    key = json.loads(OKPAlgorithm.to_jwk(Ed25519PrivateKey.generate().public_key()))
    return TokenVerifier(json.dumps({"keys": [key | {"kid": "bench"}]}))


async def worker() -> None:
    application = Application(handlers=[Posts()], probes={})
    async with (
        connect(SecretStr(URL), "posts") as bus,
        serve("posts", application, bus, _verifier()),
    ):
        gc_tuning.freeze()
        await for_ever()


async def client() -> None:
    async with connect(SecretStr(URL), "gateway") as bus:
        await bus.wait_ready()
        gc_tuning.freeze()
        stub = PostsServiceStub(ServiceChannel(bus))

        async def call() -> None:
            response = await stub.list_posts(_ASKED)
            assert response.posts[0].id == loop.NEW_ID

        await closed_loop(call)


async def bytes_worker() -> None:
    """Serve bytes by the data plane alone."""
    reply = payload_reply(b"x" * 330)

    async def handler(_route: str, _body: bytes, _service: str) -> bytes:
        return reply

    async with connect(SecretStr(URL), "bench") as bus:
        await bus.serve("bench", ["postbus.bench.v1.Bytes"], handler, concurrency=256)
        gc_tuning.freeze()
        await for_ever()


async def bytes_client() -> None:
    request = b"x" * 310
    async with connect(SecretStr(URL), "gateway") as bus:
        await bus.wait_ready()
        gc_tuning.freeze()
        await closed_loop(
            lambda: bus.call("postbus.bench.v1.Bytes", Call(request, time.monotonic() + 5))
        )


if __name__ == "__main__":
    if "bytes" in arguments():
        loop.run(bytes_worker, bytes_client)
    else:
        loop.run(worker, client)
