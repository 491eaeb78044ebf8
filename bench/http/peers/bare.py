"""A lower bound: an ASGI handler that sends bytes over our bus to a worker that adds an id."""

import asyncio
import os
import sys
import time

import uvicorn
import uvloop
from pydantic import SecretStr

from shared.bus import Call
from shared.bus.amqp import connect
from shared.bus.reply import payload_reply
from shared.runtime import gc_tuning

URL = SecretStr(os.environ["BENCH_URL"])
HEAD = b'{"id": "018f3b6e-7b1a-7c44-9d0e-5f2a1b3c4d5e", '


async def worker() -> None:
    async def handler(_route: str, body: bytes, _service: str) -> bytes:
        return payload_reply(HEAD + body[1:])

    async with connect(URL, "bench") as bus:
        await bus.serve("bench", ["postbus.bench.v1.Bare"], handler, concurrency=256)
        gc_tuning.freeze()
        print("READY", flush=True)
        await asyncio.Future()


async def gateway() -> None:
    async with connect(URL, "gateway") as bus:
        await bus.wait_ready()

        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                await receive()
                await send({"type": "lifespan.startup.complete"})
                asyncio.get_running_loop().call_later(0.5, lambda: print("READY", flush=True))
                await receive()
                await send({"type": "lifespan.shutdown.complete"})
                return
            body = (await receive())["body"]
            result = await bus.call("postbus.bench.v1.Bare", Call(body, time.monotonic() + 5))
            body = result.payload
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        config = uvicorn.Config(
            app,
            port=int(os.environ["BENCH_PORT"]),
            http="httptools",
            log_level="error",
            access_log=False,
        )
        gc_tuning.freeze()
        await uvicorn.Server(config).serve()


uvloop.run({"worker": worker, "gateway": gateway}[sys.argv[1]]())
