"""Authorization at the gateway and on the bus, where any client can send any request."""

import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import httpx
import jwt
import pytest
from pydantic import SecretStr

from postbus.posts.v1 import CreatePostRequest, DeletePostRequest, GetPostRequest, UpdatePostRequest
from postbus.registry import METHODS, Access, Method
from postbus.users.v1 import RevokeSessionRequest
from shared.bus import Call
from shared.bus.amqp import AmqpBus, connect
from shared.errors import Code, ServiceError
from shared.wire import encode
from tests.conftest import Place
from tests.people import Client, sign_up
from tests.system import System
from tests.tokens import TokenMaker
from tools.accounts.rights import OPERATOR

ID = "018f3f6e-0000-7000-8000-000000000001"
FOR_USERS = [
    method
    for method in METHODS.values()
    if method.access is Access.USER and method.worker in ("users", "posts")
]
FOR_SERVICES = [method for method in METHODS.values() if method.access is Access.INTERNAL]


@pytest.fixture
async def bus(place: Place, system: System) -> AsyncIterator[AmqpBus]:
    """Return a bus of a client that has the broker's password."""
    async with connect(SecretStr(place.amqp_url), OPERATOR) as opened:
        await opened.wait_ready()
        yield opened


async def refusal(bus: AmqpBus, method: str, token: str, payload: bytes = b"") -> ServiceError:
    call = Call.new(payload, budget=5, access_token=token)
    with pytest.raises(ServiceError) as raised:
        await bus.call(method, call)
    return raised.value


def forged(tokens: TokenMaker) -> dict[str, str]:
    """Return tokens that `users` has not signed, or not as access tokens."""
    claims = {"iss": "postbus.users", "aud": "postbus", "sub": ID, "sid": ID, "jti": ID}
    times = {"iat": time.time(), "exp": time.time() + 600}
    public = json.loads(tokens.key_set)["keys"][0]["x"]
    return {
        "signed by another": TokenMaker().token(ID),
        "unsigned": jwt.encode(
            claims | times, "", "none", headers={"kid": "test", "typ": "at+jwt"}
        ),
        "signed with the public key": jwt.encode(
            claims | times, public, "HS256", headers={"kid": "test", "typ": "at+jwt"}
        ),
        "expired": tokens.token(ID, lifetime=timedelta(seconds=-31)),
        "for another audience": tokens.token(ID, aud="another"),
        "of another issuer": tokens.token(ID, iss="another"),
        "of another kind": "not.a.token",
    }


@pytest.mark.parametrize("method", FOR_USERS, ids=lambda method: method.name)
async def test_method_for_users_refuses_other_callers(
    method: Method, bus: AmqpBus, client: httpx.AsyncClient, tokens: TokenMaker
) -> None:
    rule = method.http[0]
    path = rule.path.replace("{username}", "someone")
    for name in ("{id}", "{post_id}"):
        path = path.replace(name, ID)

    at_gateway = await client.request(rule.verb, path, json={} if rule.body else None)
    assert (at_gateway.status_code, at_gateway.json()["reason"]) == (401, "TOKEN_MISSING")
    assert (await refusal(bus, method.name, "")).reason == "TOKEN_MISSING"
    for kind, token in forged(tokens).items():
        headers = {"Authorization": f"Bearer {token}"}
        response = await client.request(
            rule.verb, path, json={} if rule.body else None, headers=headers
        )
        assert (response.status_code, response.json()["code"]) == (401, "UNAUTHENTICATED"), kind
        assert (await refusal(bus, method.name, token)).code is Code.UNAUTHENTICATED, kind


@pytest.mark.parametrize("method", FOR_SERVICES, ids=lambda method: method.name)
async def test_internal_method_does_not_exist_for_clients(
    method: Method, client: httpx.AsyncClient
) -> None:
    document = (await client.get("/openapi.json")).text

    assert method.http == ()
    assert method.request.__name__ not in document


@pytest.mark.parametrize("method", FOR_SERVICES, ids=lambda method: method.name)
async def test_internal_method_refuses_services_that_are_not_its_callers(
    method: Method, place: Place, system: System
) -> None:
    """The broker lets `users` reply to these three; it proves which one calls."""
    others = {"gateway", "posts", OPERATOR} - method.callers
    route = f"{method.name}.users" if method.worker == "bus" else method.name
    for service in others:
        async with connect(SecretStr(place.amqp_url), service) as bus:
            await bus.wait_ready()
            if method.streams:
                with pytest.raises(ServiceError, match="SERVICE_NOT_ALLOWED"):
                    await anext(bus.stream(route, Call.new(b"", budget=5)))
            else:
                assert (await refusal(bus, route, "")).reason == "SERVICE_NOT_ALLOWED"

    assert others


async def test_token_of_another_user_gives_no_access(
    bus: AmqpBus, client: httpx.AsyncClient, unique: Callable[[str], str]
) -> None:
    alice = await sign_up(client, unique("alice"))
    mallory = await sign_up(client, unique("mallory"))
    draft = {"title": "Secret", "status": "POST_STATUS_DRAFT"}
    hidden = (await Client(client, alice).done("POST", "/v1/posts", draft))["id"]
    shown = (await Client(client, alice).done("POST", "/v1/posts", {"title": "Shown"}))["id"]
    sessions = await Client(client, alice).done("GET", "/v1/auth/sessions")
    session = sessions["sessions"][0]["id"]
    posts, auth = "postbus.posts.v1.PostsService", "postbus.users.v1.AuthService"

    for method, request, code in (
        (f"{posts}.GetPost", GetPostRequest(id=hidden), Code.NOT_FOUND),
        (f"{posts}.DeletePost", DeletePostRequest(id=hidden), Code.NOT_FOUND),
        (f"{posts}.DeletePost", DeletePostRequest(id=shown), Code.PERMISSION_DENIED),
        (f"{posts}.UpdatePost", UpdatePostRequest(id=shown), Code.PERMISSION_DENIED),
        (f"{auth}.RevokeSession", RevokeSessionRequest(id=session), Code.NOT_FOUND),
    ):
        error = await refusal(bus, method, mallory.token, encode(request))
        assert error.code is code, method
    assert (await Client(client, alice).done("GET", "/v1/me"))["id"] == alice.id


async def test_token_of_an_unknown_account_creates_nothing(
    bus: AmqpBus, tokens: TokenMaker
) -> None:
    """The token is signed by the right key for an account that does not exist."""
    request = encode(CreatePostRequest(title="From nowhere"))

    error = await refusal(
        bus, "postbus.posts.v1.PostsService.CreatePost", tokens.token(ID), request
    )

    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "SESSION_REVOKED")
