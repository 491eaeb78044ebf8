"""A FastStream worker that replies with the post and an id."""

import asyncio
import os

import uvloop
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from pydantic import BaseModel

NEW_ID = "018f3b6e-7b1a-7c44-9d0e-5f2a1b3c4d5e"
QUEUE = RabbitQueue("bench.http.faststream", auto_delete=True)


class Post(BaseModel):
    author: str
    title: str
    body: str
    created_at: str


class StoredPost(Post):
    id: str


def new_broker() -> RabbitBroker:
    channel = Channel(prefetch_count=256, publisher_confirms=False)
    return RabbitBroker(os.environ["BENCH_URL"], logger=None, default_channel=channel)


async def main() -> None:
    broker = new_broker()

    @broker.subscriber(QUEUE)
    async def answer(post: Post) -> StoredPost:
        return StoredPost(id=NEW_ID, **post.__dict__)

    await broker.start()
    print("READY", flush=True)
    await asyncio.Future()


if __name__ == "__main__":
    uvloop.run(main())
