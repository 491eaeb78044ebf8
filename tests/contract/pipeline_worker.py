"""The gateway and a worker of the service in pipeline.proto, in one process and over no network.

Reads requests from standard input, a JSON array a line (verb, URL, JSON text), and answers each
with a line: status and JSON. Started by test_pipeline.py, with the generated package in front.
"""

import asyncio
import json
import sys
from typing import Any

import httpx
from postbus.kinds.v1 import (
    ChangeRequest,
    ChangeResponse,
    CheckRequest,
    CheckResponse,
    EchoRequest,
    EchoResponse,
    KindsServiceBase,
    QueryRequest,
    QueryResponse,
)

from gateway.app import build_app
from shared.context import Context
from shared.identity import TokenVerifier
from shared.messagebus import MessagePattern
from shared.messagebus.memory import MemoryBus
from shared.worker import Application, serve


class Kinds:
    """What a developer writes for four rpcs."""

    @MessagePattern(KindsServiceBase.echo)
    async def echo(self, request: EchoRequest, _context: Context) -> EchoResponse:
        return EchoResponse(value=request.value)

    @MessagePattern(KindsServiceBase.query)
    async def query(self, request: QueryRequest, _context: Context) -> QueryResponse:
        return QueryResponse(request=request)

    @MessagePattern(KindsServiceBase.change)
    async def change(self, request: ChangeRequest, _context: Context) -> ChangeResponse:
        return ChangeResponse(request=request)

    @MessagePattern(KindsServiceBase.check)
    async def check(self, _request: CheckRequest, _context: Context) -> CheckResponse:
        return CheckResponse()


async def main() -> None:
    """Serve until the input ends."""
    verifier = TokenVerifier(sys.argv[1])
    bus = MemoryBus()
    async with serve("kinds", Application(handlers=[Kinds()], probes={}), bus, verifier):
        app = build_app(bus, verifier, max_body_bytes=10_000_000)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            for line in sys.stdin:
                text = json.dumps(await answer(client, *json.loads(line)))
                sys.stdout.write(text + "\n")
                sys.stdout.flush()


async def answer(client: httpx.AsyncClient, verb: str, url: str, body: str | None) -> list[Any]:
    headers = {} if body is None else {"Content-Type": "application/json"}
    response = await client.request(verb, url, content=body, headers=headers)
    return [response.status_code, response.json() if response.content else None]


if __name__ == "__main__":
    asyncio.run(main())
