"""The gateway and a worker of the service in pipeline.proto, in one process without a network.

Reads requests from standard input, a JSON array a line (verb, URL, JSON text), and answers each
with a line: status and JSON. Started by test_pipeline.py, with the generated package in front.
"""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

import httpx
from betterproto.lib.google.protobuf import Empty
from postbus.imported.google.api import HttpBody
from postbus.imported.google.type import Money
from postbus.kinds.v1 import (
    ChangeRequest,
    ChangeResponse,
    CheckRequest,
    CheckResponse,
    CountRequest,
    CountResponse,
    DivideRequest,
    DivideResponse,
    EchoRequest,
    EchoResponse,
    ForeignRequest,
    ForeignResponse,
    GetItemRequest,
    GetItemResponse,
    HoldRequest,
    HoldResponse,
    KindsServiceBase,
    KindsServiceStub,
    MaskRequest,
    MaskResponse,
    Place,
    PriceRequest,
    QueryRequest,
    QueryResponse,
    Record,
    RenameRequest,
    RenameResponse,
    StoreRequest,
    StoreResponse,
    UploadRequest,
    UploadResponse,
)
from postbus.kinds.v2 import EchoRequest as EchoRequest2
from postbus.kinds.v2 import EchoResponse as EchoResponse2
from postbus.kinds.v2 import KindsServiceBase as KindsServiceBase2
from postbus.kinds.v2 import PairRequest, PairResponse

from gateway.app import build_app
from gateway.services import Services
from gateway.socket_limits import FrameBudget
from gateway.websocket_connection import WebSocketConnection
from postbus.reasons import REASONS
from shared.access_tokens import TokenVerifier
from shared.bus import Call, MessagePattern, ServiceChannel
from shared.bus.memory import MemoryBus
from shared.context import Context, current_context
from shared.errors import ServiceError
from shared.runtime.worker import Application, serve
from tests.sockets import MemorySocket


class Kinds:
    """Handlers of the service."""

    @MessagePattern(KindsServiceBase.echo)
    async def echo(self, request: EchoRequest, _context: Context) -> EchoResponse:
        return EchoResponse(value=request.value)

    @MessagePattern(KindsServiceBase.query)
    async def query(self, request: QueryRequest, _context: Context) -> QueryResponse:
        return QueryResponse(request=request)

    @MessagePattern(KindsServiceBase.change)
    async def change(self, request: ChangeRequest, _context: Context) -> ChangeResponse:
        return ChangeResponse(request=request)

    @MessagePattern(KindsServiceBase.count)
    async def count(
        self, request: CountRequest, context: Context
    ) -> AsyncGenerator[CountResponse, None]:
        assert current_context() is context
        for number in range(1, request.to + 1):
            if number == request.fail_at:
                raise ServiceError(REASONS["TOLD_TO_FAIL"], "As you wished.")
            yield CountResponse(number=number)

    @MessagePattern(KindsServiceBase.divide)
    async def divide(self, _request: DivideRequest, _context: Context) -> DivideResponse:
        return DivideResponse()

    @MessagePattern(KindsServiceBase.check)
    async def check(self, _request: CheckRequest, _context: Context) -> CheckResponse:
        return CheckResponse()

    @MessagePattern(KindsServiceBase.ping)
    async def ping(self, _request: Empty, _context: Context) -> Empty:
        return Empty()

    @MessagePattern(KindsServiceBase.accept)
    async def accept(self, _request: Empty, _context: Context) -> Empty:
        return Empty()

    @MessagePattern(KindsServiceBase.beat)
    async def beat(self, _request: Empty, _context: Context) -> AsyncGenerator[Empty, None]:
        yield Empty()
        yield Empty()

    @MessagePattern(KindsServiceBase.store)
    async def store(self, request: StoreRequest, _context: Context) -> StoreResponse:
        return StoreResponse(record=stored(request.record), request=request)

    @MessagePattern(KindsServiceBase.rename)
    async def rename(self, request: RenameRequest, _context: Context) -> RenameResponse:
        return RenameResponse(record=stored(Record(id=request.id, title=request.title)))

    @MessagePattern(KindsServiceBase.mask)
    async def mask(self, request: MaskRequest, _context: Context) -> MaskResponse:
        return MaskResponse(request=request)

    @MessagePattern(KindsServiceBase.hold)
    async def hold(self, request: HoldRequest, _context: Context) -> HoldResponse:
        return HoldResponse(value=request.value)

    @MessagePattern(KindsServiceBase.get_item)
    async def get_item(self, request: GetItemRequest, _context: Context) -> GetItemResponse:
        return GetItemResponse(id=request.id)

    @MessagePattern(KindsServiceBase.post_latest)
    async def post_latest(self, _request: Empty, _context: Context) -> Empty:
        return Empty()

    @MessagePattern(KindsServiceBase.foreign)
    async def foreign(self, request: ForeignRequest, _context: Context) -> ForeignResponse:
        return ForeignResponse(request=request)

    @MessagePattern(KindsServiceBase.price)
    async def price(self, request: PriceRequest, _context: Context) -> Money:
        return request.price

    @MessagePattern(KindsServiceBase.upload)
    async def upload(self, request: UploadRequest, _context: Context) -> UploadResponse:
        return UploadResponse(name=request.name, file=request.file)

    @MessagePattern(KindsServiceBase.mirror)
    async def mirror(self, request: HttpBody, _context: Context) -> HttpBody:
        return request


def stored(record: Record) -> Record:
    """Return a record with values in its output-only fields, which it must not have yet."""
    assert (record.version, record.tags) == (0, [])
    place = Place(name="a", formatted="A, B")
    return Record(
        id=record.id,
        title=record.title,
        version=7,
        changed_at=datetime(2026, 1, 1, tzinfo=UTC),
        place=place,
        places=[place, place],
        by_name={"a": place},
        derived=place,
        parent=Record(version=6, place=place, tags=["x"]),
        tags=["x", "y"],
    )


class KindsOfVersion2:
    """Handlers of the service's second version."""

    @MessagePattern(KindsServiceBase2.echo)
    async def echo(self, request: EchoRequest2, _context: Context) -> EchoResponse2:
        return EchoResponse2(text=request.text)

    @MessagePattern(KindsServiceBase2.pair)
    async def pair(self, request: PairRequest, _context: Context) -> PairResponse:
        return PairResponse(a=request.a, b=request.b)


async def main() -> None:
    """Serve until the input ends."""
    verifier = TokenVerifier(sys.argv[1])
    bus = MemoryBus()
    handlers = [Kinds(), KindsOfVersion2()]
    async with serve("kinds", Application(handlers=handlers, probes={}), bus, verifier):
        app = build_app(bus, verifier, max_body_bytes=10_000_000)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.running(),
            httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
        ):
            for line in sys.stdin:
                verb, url, body = json.loads(line)
                if verb == "WEBSOCKET":
                    got = [0, await converse(bus, verifier, json.loads(body))]
                elif verb == "CALL":
                    got = [0, await call(bus, verifier, url, body)]
                elif verb == "BYTES":
                    got = [0, await call_bytes(bus, url, bytes.fromhex(body))]
                elif verb == "STUB":
                    stub = KindsServiceStub(ServiceChannel(bus))
                    request = CountRequest(to=int(body))
                    got = [0, [response.number async for response in stub.count(request)]]
                else:
                    got = await respond(client, verb, url, body)
                text = json.dumps(got)
                sys.stdout.write(text + "\n")
                sys.stdout.flush()


async def respond(client: httpx.AsyncClient, verb: str, url: str, body: str | None) -> list[Any]:
    headers = {} if body is None else {"Content-Type": "application/json"}
    if verb.startswith("BINARY "):
        return await respond_binary(client, verb.removeprefix("BINARY "), url, body)
    raw = verb.startswith("RAW ")
    if raw:  # with the media type as the first line of the body
        verb = verb.removeprefix("RAW ")
        headers["Content-Type"], _, body = (body or "").partition("\n")
        headers["Accept"] = "application/json"  # which a raw body ignores
    response = await client.request(verb, url, content=body, headers=headers)
    if raw and "problem" not in response.headers.get("content-type", ""):
        return [response.status_code, [dict(response.headers), response.text]]
    if response.headers.get("content-type") == "application/x-ndjson":
        return [response.status_code, [json.loads(line) for line in response.text.splitlines()]]
    return [response.status_code, response.json() if response.content else None]


async def respond_binary(
    client: httpx.AsyncClient, verb: str, url: str, body: str | None
) -> list[Any]:
    """Send a binary message in hexadecimal; return the status, and media type and bytes or JSON."""
    headers = {"Accept": "application/protobuf"}
    headers |= {} if body is None else {"Content-Type": "application/protobuf"}
    response = await client.request(verb, url, content=bytes.fromhex(body or ""), headers=headers)
    if response.headers.get("content-type") == "application/problem+json":
        return [response.status_code, response.json()]
    return [response.status_code, [response.headers.get("content-type"), response.content.hex()]]


async def converse(bus: MemoryBus, verifier: TokenVerifier, frames: list[Any]) -> list[Any]:
    """Send frames over a WebSocket; return the received frames, until the last call ends."""
    connection, socket = await connect(bus, verifier)
    for frame in frames:
        connection.receive(json.dumps(frame).encode())
    received = []
    while True:
        received.append(await socket.frame())
        if received[-1]["id"] == frames[-1]["id"] and received[-1].keys() & {"completed", "error"}:
            await connection.close()
            return received


async def connect(
    bus: MemoryBus, verifier: TokenVerifier
) -> tuple[WebSocketConnection, MemorySocket]:
    """Open a WebSocket without a network."""
    services, socket = Services.create(bus, verifier, max_body_bytes=10_000_000), MemorySocket()
    await services.verifier.run()
    return WebSocketConnection(socket, services, FrameBudget(1000, 1000)), socket


async def call(bus: MemoryBus, verifier: TokenVerifier, token: str, text: str) -> Any:
    """Send the text of a frame over an authenticated WebSocket; return the frame of its result."""
    connection, socket = await connect(bus, verifier)
    authenticate = {"id": "1", "authenticate": {"accessToken": token}}
    connection.receive(json.dumps(authenticate).encode())
    await socket.frame()
    connection.receive(text.encode())
    frame = await socket.frame()
    await connection.close()
    return frame


async def call_bytes(bus: MemoryBus, route: str, payload: bytes) -> Any:
    """Call a method on the bus as a foreign client does, with an encoded request."""
    try:
        result = await bus.call(route, Call.new(payload, budget=5))
    except ServiceError as error:
        found = [(each.field, each.rule) for each in error.violations]
        return {"reason": error.reason, "violations": found}
    return {"payload": result.payload.hex()}


if __name__ == "__main__":
    asyncio.run(main())
