"""The keys that others verify tokens with are the gateway's own; no worker can forge them."""

import json

import httpx

from gateway.app import build_app
from gateway.gateway import Gateway
from shared.access_tokens import TokenVerifier
from shared.bus.memory import MemoryBus
from tests.gateway.conftest import Worker
from tests.gateway.listening import open_socket
from tests.tokens import TokenMaker

METHOD = "postbus.users.v1.AuthService.GetSigningKeys"


def public(tokens: TokenMaker) -> list[dict[str, str]]:
    """Return the keys as the contract shows them, with every field."""
    return [{"use": "", **key} for key in json.loads(tokens.key_set)["keys"]]


async def test_keys_are_those_of_the_gateway_and_no_worker_is_asked(
    gateway: httpx.AsyncClient, worker: Worker, tokens: TokenMaker
) -> None:
    response = await gateway.get("/.well-known/jwks.json")

    assert response.json() == {"keys": public(tokens)}
    assert worker.requests == []


async def test_keys_over_the_websocket_are_those_of_the_gateway(
    app: Gateway, worker: Worker, tokens: TokenMaker
) -> None:
    async with open_socket(app) as socket:
        await socket.request({"id": "1", "authenticate": {"accessToken": tokens.token("alice")}})
        frame = await socket.request({"id": "2", "call": {"method": METHOD, "request": {}}})

    assert frame["result"]["response"]["keys"] == public(tokens)
    assert worker.requests == []


async def test_private_members_of_a_key_are_not_published(
    bus: MemoryBus, tokens: TokenMaker
) -> None:
    keys = json.dumps({"keys": [json.loads(tokens.signing_key)]})
    app = build_app(bus, TokenVerifier(keys), max_body_bytes=100)
    transport = httpx.ASGITransport(app)

    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        response = await client.get("/.well-known/jwks.json")

    assert response.json() == {"keys": public(tokens)}
