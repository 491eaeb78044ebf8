"""Metadata at the gateway: header fields for handlers, and header fields that handlers set."""

from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.app import build_app
from postbus.bus.v1 import Code, Error, ErrorDetail, Metadata, Reply
from shared.access_tokens import TokenVerifier
from shared.bus.memory import MemoryBus
from tests.gateway.conftest import Worker
from tests.gateway.connect_client import POSTS, error_of

ID = "018f3f6e-0000-7000-8000-000000000001"
CONNECT, REST = f"{POSTS}/GetPost", f"/v1/posts/{ID}"
HEADERS = [
    Metadata(name="x-head", values=["a", "b"]),
    *(
        Metadata(name=name, values=["evil"])
        for name in ("content-length", "set-cookie", "connection", "trace-id", "ratelimit-policy")
    ),
]
TRAILERS = [Metadata(name="x-tail", values=["z"])]


@pytest.fixture
async def passing(bus: MemoryBus, verifier: TokenVerifier) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that passes two header fields on."""
    names = ("accept-language", "X-Tenant")
    app = build_app(bus, verifier, max_body_bytes=10_000, metadata_headers=names)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


async def call(client: httpx.AsyncClient, path: str, **options: object) -> httpx.Response:
    if path == REST:
        return await client.get(path, **options)  # type: ignore[arg-type]
    return await client.post(path, json={"id": ID}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [REST, CONNECT])
async def test_handler_gets_listed_header_fields_with_each_value(
    passing: httpx.AsyncClient, worker: Worker, path: str
) -> None:
    sent = [("X-Tenant", "1"), ("x-other", "2"), ("x-tenant", "3"), ("accept-language", "nl")]

    await call(passing, path, headers=sent)

    [(_, request)] = worker.requests
    found = {each.name: each.values for each in request.metadata}
    assert found == {"x-tenant": ["1", "3"], "accept-language": ["nl"]}


@pytest.mark.parametrize("path", [REST, CONNECT])
async def test_no_header_field_is_passed_on_by_default(
    gateway: httpx.AsyncClient, worker: Worker, path: str
) -> None:
    await call(gateway, path, headers={"accept-language": "nl"})

    assert worker.requests[0][1].metadata == []


@pytest.mark.parametrize("path", [REST, CONNECT])
@pytest.mark.parametrize("value", ["x" * 9_000, "\u00e9".encode("latin-1")])
async def test_header_fields_beyond_the_bounds_are_refused(
    passing: httpx.AsyncClient, worker: Worker, path: str, value: str
) -> None:
    response = await call(passing, path, headers=[(b"x-tenant", value)])

    assert response.status_code == 400
    if path == REST:
        assert response.json()["reason"] == "METADATA_INVALID"
    else:
        assert error_of(response)[1:] == ("invalid_argument", "METADATA_INVALID")
    assert worker.requests == []


async def test_timeout_of_the_client_is_told_from_the_default(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    for path, header in ((REST, "Request-Timeout"), (CONNECT, "Connect-Timeout-Ms")):
        await call(gateway, path)
        await call(gateway, path, headers={header: "5"})

    flags = [request.has_client_timeout for _, request in worker.requests]
    assert flags == [False, True] * 2


async def test_response_has_the_header_fields_of_the_handler_but_none_of_the_gateway(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    worker.reply = Reply(payload=b"", headers=HEADERS, trailers=TRAILERS)

    rest = await call(gateway, REST)
    connect = await call(gateway, CONNECT)

    for response in (rest, connect):
        assert response.status_code == 200
        assert response.headers.get_list("x-head") == ["a", "b"]
        assert "evil" not in str(response.headers)
    assert "x-tail" not in str(rest.headers)
    assert connect.headers["trailer-x-tail"] == "z"


async def test_error_has_header_fields_and_the_details_of_the_handler_first(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    detail = ErrorDetail(type="a.B", value=b"1")
    error = Error(code=Code.try_value(Code.ABORTED), reason="OUT_OF_TEA", details=[detail])
    worker.reply = Reply(error=error, headers=HEADERS, trailers=TRAILERS)

    response = await call(gateway, CONNECT)

    assert response.headers.get_list("x-head") == ["a", "b"]
    assert response.headers["trailer-x-tail"] == "z"
    first, second = response.json()["details"]
    assert first == {"type": "a.B", "value": "MQ"}
    assert second["type"] == "google.rpc.ErrorInfo"
