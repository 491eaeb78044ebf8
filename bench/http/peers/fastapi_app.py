"""FastAPI on uvicorn: `alone` responds immediately, `faststream` calls a FastStream worker."""

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from faststream_worker import NEW_ID, QUEUE, Post, StoredPost, new_broker

Call = Callable[[Post], Awaitable[StoredPost]]


async def alone(post: Post) -> StoredPost:
    return StoredPost(id=NEW_ID, **post.__dict__)


async def faststream() -> Call:
    """Return the faster of FastStream's two kinds of calls: a reply queue, no confirms."""
    from faststream.rabbit import RabbitMessage, RabbitQueue

    broker = new_broker()
    waiting: dict[str, asyncio.Future[StoredPost]] = {}
    ids = itertools.count()
    replies = f"bench.http.faststream.{os.getpid()}"

    @broker.subscriber(RabbitQueue(replies, exclusive=True, auto_delete=True))
    async def on_reply(post: StoredPost, message: RabbitMessage) -> None:
        future = waiting.pop(message.correlation_id or "")
        if not future.done():
            future.set_result(post)

    await broker.start()

    async def call(post: Post) -> StoredPost:
        id_ = str(next(ids))
        waiting[id_] = reply = asyncio.get_running_loop().create_future()
        await broker.publish(post, QUEUE, reply_to=replies, correlation_id=id_, mandatory=False)
        return await reply

    return call


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.call = await faststream() if sys.argv[1] == "faststream" else alone
    asyncio.get_running_loop().call_later(0.5, print, "READY")
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/posts")
async def create(post: Post) -> StoredPost:
    return await app.state.call(post)


sys.stdout.reconfigure(line_buffering=True)
uvicorn.run(
    app,
    port=int(os.environ["BENCH_PORT"]),
    loop="uvloop",
    http="httptools",
    log_level="error",
    access_log=False,
)
