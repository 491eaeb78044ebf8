"""The semantics of HTTP that every route of the contract shares (RFC 9110)."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from importlib.resources import files
from unittest.mock import ANY

import httpx
import pytest
from structlog.testing import capture_logs

from gateway.app import build_app
from gateway.gateway import Gateway
from gateway.health import Health
from gateway.targets import MAX_PARAMETERS
from postbus.bus.v1 import Code, Error, Reply
from postbus.posts.v1 import CreatePostResponse, GetPostRequest, Post, UpdatePostRequest
from postbus.registry import METHODS, Access, HttpRule, Method
from shared.access_tokens import TokenVerifier
from shared.bus.memory import MemoryBus
from shared.wire import decode, encode
from tests.gateway.conftest import Worker
from tests.tokens import TokenMaker

POST_ID = "018f3f6e-0000-7000-8000-000000000001"
POST = f"/v1/posts/{POST_ID}"
PAGE = "https://app.example.com"
SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
OF_PAGES = {
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


def bindings() -> Iterator[tuple[Method, HttpRule]]:
    for method in METHODS.values():
        for rule in method.http if method.access is not Access.INTERNAL else ():
            yield method, rule


BINDINGS = [pytest.param(m, r, id=f"{r.verb} {r.path}") for m, r in bindings()]
WITH_BODY = [pytest.param(m, r, id=f"{r.verb} {r.path}") for m, r in bindings() if r.body]
WITHOUT_BODY = [pytest.param(m, r, id=f"{r.verb} {r.path}") for m, r in bindings() if not r.body]


def url(rule: HttpRule) -> str:
    return re.sub(r"\{[^}]*\}", POST_ID, rule.path)


DOCUMENT = json.loads(files("postbus").joinpath("openapi.json").read_text())


def require_documented(rule: HttpRule, response: httpx.Response) -> None:
    """Assert that the document has the status for this operation, and the headers with it."""
    documented = DOCUMENT["paths"][rule.path][rule.verb.lower()]["responses"][
        str(response.status_code)
    ]
    if "$ref" in documented:
        documented = DOCUMENT["components"]["responses"][documented["$ref"].rpartition("/")[2]]
    headers = {name.lower() for name in documented["headers"]}
    special = {"accept", "accept-encoding", "accept-patch", "etag", "location", "retry-after"}
    assert special & response.headers.keys() <= headers


def described(response: httpx.Response) -> dict[str, str]:
    """Return the headers of a response except its trace id; no header occurs twice."""
    assert len(response.headers) == len(response.headers.multi_items())
    headers = dict(response.headers)
    assert re.fullmatch("[0-9a-f]{32}", headers.pop("trace-id"))
    return headers


def problem_of(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["reason"]


@pytest.fixture
def headers(tokens: TokenMaker) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens.token('alice')}"}


@pytest.fixture
async def open_gateway(bus: MemoryBus, verifier: TokenVerifier) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that allows the origin PAGE."""
    app = build_app(bus, verifier, max_body_bytes=10_000, allowed_origins=(PAGE,))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.mark.parametrize(("method", "rule"), BINDINGS)
async def test_every_response_has_the_security_headers(
    gateway: httpx.AsyncClient, headers: dict[str, str], method: Method, rule: HttpRule
) -> None:
    for sent in ({}, headers):
        response = await gateway.request(rule.verb, url(rule), headers=sent)

        require_documented(rule, response)
        assert SECURITY.items() <= response.headers.items(), response.text
        assert response.headers["trace-id"]
        assert response.headers["vary"].split(", ")[0] == "Authorization"


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("PUT", POST, 405),
        ("OPTIONS", POST, 204),
        ("GET", "/v1/%zz", 400),
        ("GET", "/ws", 426),
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 503),
        ("GET", "/metrics", 200),
        ("GET", "/docs", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/contracts", 200),
        ("GET", "/", 307),
    ],
)
async def test_responses_beside_the_contract_have_the_security_headers_once(
    gateway: httpx.AsyncClient, verb: str, path: str, status: int
) -> None:
    response = await gateway.request(verb, path)

    assert response.status_code == status
    for name, value in SECURITY.items():
        assert response.headers.get_list(name) == [value]
    html = response.headers.get("content-type", "").startswith("text/html")
    for name, value in OF_PAGES.items():
        assert response.headers.get(name) == (value if html else None)


async def test_304_has_the_security_headers(gateway: httpx.AsyncClient) -> None:
    for path in (POST, "/openapi.json"):
        response = await gateway.get(path, headers={"If-None-Match": "*"})

        assert response.status_code == 304
        assert SECURITY.items() <= response.headers.items()
        assert response.headers["etag"]


@pytest.mark.parametrize("replayed", [False, True])
async def test_headers_of_a_success_are_complete_for_every_status(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str], replayed: bool
) -> None:
    payload = encode(CreatePostResponse(post=Post(id=POST_ID, version=1)))
    worker.reply = Reply(payload=payload, replayed=replayed)
    always = SECURITY | {"vary": "Authorization", "cache-control": "private, no-cache"}
    if replayed:
        always["idempotency-replayed"] = "true"
    vary = {"vary": "Authorization, Accept"}
    with_content = always | {"content-type": "application/json", "etag": ANY, "content-length": ANY}
    with_content |= vary

    created = await gateway.post("/v1/posts", json={"title": "Hi"}, headers=headers)
    read = await gateway.get(POST, headers=headers)
    known = await gateway.get(POST, headers=headers | {"If-None-Match": "*"})
    worker.reply = Reply(payload=b"", replayed=replayed)
    deleted = await gateway.delete(POST, headers=headers)

    assert [each.status_code for each in (created, read, known, deleted)] == [201, 200, 304, 204]
    assert described(created) == with_content | {"location": POST}
    assert described(read) == with_content
    assert described(known) == always | vary | {"etag": read.headers["etag"]}
    assert described(deleted) == always


async def test_headers_of_a_problem_are_complete(gateway: httpx.AsyncClient) -> None:
    for path in (f"{POST}?nonsense=1", "/nowhere"):
        response = await gateway.get(path)

        headers = {each: response.headers[each] for each in described(response)}
        headers.pop("vary", None)
        assert headers == SECURITY | {
            "content-type": "application/problem+json",
            "content-length": str(len(response.content)),
            "cache-control": "no-store",
        }


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (1, "1"), (1.5, "2"), (600, "600")])
async def test_retry_after_is_rounded_up(
    gateway: httpx.AsyncClient, worker: Worker, seconds: float, header: str
) -> None:
    code, wait = Code.try_value(Code.UNAVAILABLE), timedelta(seconds=seconds)
    worker.reply = Reply(error=Error(code=code, reason="BUSY", retry_after=wait))

    response = await gateway.get(POST)

    assert (response.status_code, response.headers["retry-after"]) == (503, header)


@pytest.mark.parametrize(
    ("token", "challenge"),
    [
        (None, 'Bearer realm="postbus"'),
        ("expired", 'Bearer realm="postbus", error="invalid_token"'),
        ("forged", 'Bearer realm="postbus", error="invalid_token"'),
    ],
)
async def test_401_challenge_differs_for_invalid_and_missing_tokens(
    gateway: httpx.AsyncClient, tokens: TokenMaker, token: str | None, challenge: str
) -> None:
    made = {"expired": tokens.token("alice", lifetime=timedelta(minutes=-1)), "forged": "x.y.z"}
    sent = {"Authorization": f"Bearer {made[token]}"} if token else {}

    response = await gateway.get("/v1/me", headers=sent)

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == challenge


async def test_401_challenge_of_an_ended_session_has_invalid_token(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    code = Code.try_value(Code.UNAUTHENTICATED)
    worker.reply = Reply(error=Error(code=code, reason="SESSION_REVOKED"))

    response = await gateway.get("/v1/me", headers=headers)

    assert response.headers["www-authenticate"] == 'Bearer realm="postbus", error="invalid_token"'


async def test_401_challenge_of_a_worker_error_has_no_invalid_token(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    code = Code.try_value(Code.UNAUTHENTICATED)
    worker.reply = Reply(error=Error(code=code, reason="LOGIN_FAILED"))

    response = await gateway.post("/v1/auth/login", json={"login": "a", "password": "b"})

    assert response.headers["www-authenticate"] == 'Bearer realm="postbus"'


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("application/json", 200),
        ("*/*", 200),
        ("application/*;q=0.1", 200),
        ("text/html, application/xml;q=0.9, */*;q=0.8", 200),
        ("APPLICATION/JSON; charset=utf-8", 200),
        ("", 200),
        ("application/xml", 406),
        ("text/*", 406),
        ("application/json;q=0, application/protobuf;q=0, application/x-protobuf;q=0, */*", 406),
        ("application/json;q=0.000", 406),
        ("*/*;q=0", 406),
        ("application/*;q=0, application/json", 200),
    ],
)
async def test_accept_that_excludes_json_is_406(
    gateway: httpx.AsyncClient, worker: Worker, accept: str, status: int
) -> None:
    response = await gateway.get("/v1/posts", headers={"Accept": accept})

    assert response.status_code == status
    assert response.json().get("reason") == ("NOT_ACCEPTABLE" if status == 406 else None)
    assert len(worker.requests) == (status == 200)


async def test_accept_is_ignored_for_a_response_without_content(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    response = await gateway.delete(POST, headers=headers | {"Accept": "application/xml"})

    assert (response.status_code, response.content) == (204, b"")
    assert [route for route, _ in worker.requests] == ["postbus.posts.v1.PostsService.DeletePost"]


@pytest.mark.parametrize(("method", "rule"), WITH_BODY)
async def test_content_coding_is_refused_with_the_accepted_one(
    gateway: httpx.AsyncClient, headers: dict[str, str], method: Method, rule: HttpRule
) -> None:
    for coding in ("gzip", "br", "nonsense", "identity, gzip"):
        sent = headers | {"Content-Type": "application/json", "Content-Encoding": coding}

        response = await gateway.request(rule.verb, url(rule), content=b"{}", headers=sent)

        require_documented(rule, response)
        assert problem_of(response) == (415, "CONTENT_ENCODING_UNSUPPORTED")
        assert response.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(("method", "rule"), WITH_BODY)
async def test_wrong_media_type_is_refused_with_the_accepted_ones(
    gateway: httpx.AsyncClient, headers: dict[str, str], method: Method, rule: HttpRule
) -> None:
    for kind in ({"Content-Type": "text/plain"}, {}):
        response = await gateway.request(
            rule.verb, url(rule), content=b"{}", headers=headers | kind
        )

        require_documented(rule, response)
        assert problem_of(response) == (415, "NOT_JSON")
        binary = "application/protobuf, application/x-protobuf"
        field, other = ("accept", "accept-patch")
        names = f"application/json, {binary}"
        if rule.verb == "PATCH":
            field, other = other, field
            names = f"application/json, application/merge-patch+json, {binary}"
        assert response.headers[field] == names
        assert other not in response.headers


async def test_patch_accepts_a_merge_patch(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    sent = headers | {"Content-Type": "application/merge-patch+json"}

    patched = await gateway.patch(POST, content=b'{"body": null}', headers=sent)
    posted = await gateway.post("/v1/posts", content=b'{"title": "Hi"}', headers=sent)

    assert patched.status_code == 200
    [(_, request)] = worker.requests
    assert decode(UpdatePostRequest, request.payload).update_mask.paths == ["body"]
    assert problem_of(posted) == (415, "NOT_JSON")


async def test_body_that_is_absent_is_an_empty_object(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    published = await gateway.post("/v1/notifications:markRead", headers=headers)
    created = await gateway.post("/v1/posts", headers=headers)

    assert published.status_code in (200, 422), published.text
    assert problem_of(created) == (422, "INVALID_FIELDS")
    assert [each["field"] for each in created.json()["violations"]] == ["title"]


@pytest.mark.parametrize(("method", "rule"), WITHOUT_BODY)
async def test_body_of_a_method_without_one_is_refused(
    gateway: httpx.AsyncClient,
    worker: Worker,
    headers: dict[str, str],
    method: Method,
    rule: HttpRule,
) -> None:
    response = await gateway.request(
        rule.verb, url(rule), json={"expectedVersion": "99"}, headers=headers
    )

    require_documented(rule, response)
    assert problem_of(response) == (400, "BODY_UNEXPECTED")
    assert worker.requests == []


async def test_body_of_unknown_length_is_bounded(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1000
            yield b" " * 1000

    typed = headers | {"Content-Type": "application/json"}
    response = await gateway.post("/v1/posts", content=chunks(), headers=typed)

    assert problem_of(response) == (413, "BODY_TOO_LARGE")
    assert sent <= 12_000
    assert worker.requests == []


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v1/%70osts", "ListPosts"),
        ("/%76%31/posts", "ListPosts"),
        ("/v1/post%73", "ListPosts"),
        (f"/v1/posts/{POST_ID[:-1]}%31", "GetPost"),
    ],
)
async def test_needless_escape_addresses_the_same_resource(
    gateway: httpx.AsyncClient, worker: Worker, path: str, method: str
) -> None:
    assert (await gateway.get(path)).status_code == 200

    [(route, request)] = worker.requests
    assert route == f"postbus.posts.v1.PostsService.{method}"
    if method == "GetPost":
        assert decode(GetPostRequest, request.payload).id == f"{POST_ID[:-1]}1"


async def test_escaped_slash_stays_in_its_segment(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    assert problem_of(await gateway.get("/v1%2Fposts")) == (404, "UNKNOWN_PATH")


@pytest.mark.parametrize(
    "target",
    [
        "/v1/users/%FF",
        "/v1/users/%C3",
        "/v1/users/%zz",
        "/v1/users/%4",
        "/v1/users/a%",
        "/v1/posts?q=%FF",
        "/v1/posts?tag=%C3",
        "/v1/posts?q=%zz",
        "/v1/posts?%FF=q",
        "/v1/posts?q=%ED%A0%80",
    ],
)
async def test_text_that_is_not_utf8_is_refused(
    gateway: httpx.AsyncClient, worker: Worker, target: str
) -> None:
    response = await raw_get(gateway, target)

    assert problem_of(response) == (400, "MALFORMED_URL")
    assert worker.requests == []


async def raw_get(gateway: httpx.AsyncClient, target: str) -> httpx.Response:
    """Send a target unchanged; httpx would normalise it."""
    request = gateway.build_request("GET", "/")
    request.url = httpx.URL("http://gateway/").copy_with(raw_path=target.encode())
    return await gateway.send(request)


async def test_query_beyond_the_limit_of_parameters_is_refused(gateway: httpx.AsyncClient) -> None:
    most = await gateway.get("/v1/posts?" + "&".join(["x=1"] * MAX_PARAMETERS))
    more = await gateway.get("/v1/posts?" + "&".join(["x=1"] * (MAX_PARAMETERS + 1)))

    assert problem_of(most) == (422, "INVALID_FIELDS")
    assert problem_of(more) == (400, "MALFORMED_URL")


async def test_repeated_header_with_a_single_value_is_malformed(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    good = [*headers.items(), ("Content-Type", "application/json")]
    twice = [
        [*good, *headers.items()],
        [*good, ("Idempotency-Key", "a"), ("Idempotency-Key", "b")],
        [*good, ("Request-Timeout", "1"), ("Request-Timeout", "2")],
        [*good, ("Content-Type", "application/json")],
    ]

    responses = [
        await gateway.post("/v1/posts", content=b'{"title":"a"}', headers=h) for h in twice
    ]

    assert [response.status_code for response in responses] == [401, 400, 400, 415]
    assert worker.requests == []


async def test_created_resource_has_a_location(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    worker.reply = Reply(payload=encode(CreatePostResponse(post=Post(id=POST_ID, version=1))))

    created = await gateway.post("/v1/posts", json={"title": "Hi"}, headers=headers)

    assert created.headers["location"] == POST
    assert (await gateway.get(created.headers["location"])).json()["id"] == POST_ID


async def test_location_is_percent_encoded(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    worker.reply = Reply(payload=encode(CreatePostResponse(post=Post(id="a/b ü", version=1))))

    created = await gateway.post("/v1/posts", json={"title": "Hi"}, headers=headers)

    assert created.headers["location"] == "/v1/posts/a%2Fb%20%C3%BC"


@pytest.mark.parametrize(("method", "rule"), BINDINGS)
async def test_options_lists_the_verbs_of_a_path(
    gateway: httpx.AsyncClient, worker: Worker, method: Method, rule: HttpRule
) -> None:
    response = await gateway.options(url(rule))

    assert response.status_code == 204
    assert {rule.verb, "OPTIONS"} <= set(response.headers["allow"].split(", "))
    assert not any(name.startswith("access-control-") for name in response.headers)
    assert worker.requests == []


async def test_no_origin_is_allowed_by_default(gateway: httpx.AsyncClient) -> None:
    response = await gateway.get("/v1/posts", headers={"Origin": PAGE})

    assert response.status_code == 200
    assert not any(name.startswith("access-control-") for name in response.headers)


@pytest.mark.parametrize(("method", "rule"), BINDINGS)
async def test_preflight_of_an_allowed_origin_allows_every_request(
    open_gateway: httpx.AsyncClient, method: Method, rule: HttpRule
) -> None:
    sent = {
        "Origin": PAGE,
        "Access-Control-Request-Method": rule.verb,
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key,if-match",
    }
    read_by_requests = {
        *("accept", "authorization", "content-type", "idempotency-key", "if-match"),
        *("if-none-match", "request-timeout", "traceparent"),
        *("connect-protocol-version", "connect-timeout-ms"),
    }

    response = await open_gateway.options(url(rule), headers=sent)

    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == PAGE
    assert rule.verb in response.headers["access-control-allow-methods"].split(", ")
    allowed = response.headers["access-control-allow-headers"].lower().split(", ")
    assert set(allowed) == read_by_requests
    assert response.headers["access-control-max-age"] == "600"
    assert "access-control-allow-credentials" not in response.headers
    assert response.headers["vary"] == "Authorization, Origin"


@pytest.mark.parametrize("path", ["/v1/posts", "/v1/posts?nonsense=1", "/openapi.json", "/none"])
async def test_page_of_an_allowed_origin_may_read_every_response(
    open_gateway: httpx.AsyncClient, path: str
) -> None:
    response = await open_gateway.get(path, headers={"Origin": PAGE})
    other = await open_gateway.get(path, headers={"Origin": "https://evil.example"})
    none = await open_gateway.get(path)

    assert response.headers["access-control-allow-origin"] == PAGE
    exposed = set(response.headers["access-control-expose-headers"].split(", "))
    assert exposed == {
        *("ETag", "Idempotency-Replayed", "Location", "RateLimit", "RateLimit-Policy"),
        *("Retry-After", "Trace-Id"),
    }
    assert "access-control-allow-credentials" not in response.headers
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in none.headers
    for each in (response, other, none):
        assert "Origin" in each.headers["vary"].split(", ")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"{PAGE}.evil.example", "*"])
async def test_preflight_of_another_origin_allows_nothing(
    open_gateway: httpx.AsyncClient, origin: str
) -> None:
    sent = {"Origin": origin, "Access-Control-Request-Method": "GET"}

    response = await open_gateway.options("/v1/posts", headers=sent)

    assert not any(name.startswith("access-control-") for name in response.headers)


async def test_request_without_upgrade_is_426(gateway: httpx.AsyncClient) -> None:
    response = await gateway.get("/ws")

    assert problem_of(response) == (426, "UPGRADE_REQUIRED")
    assert response.headers["upgrade"] == "websocket"
    assert response.headers["connection"].lower() == "upgrade"


@pytest.mark.parametrize(("method", "rule"), BINDINGS)
async def test_response_to_a_user_is_private(
    gateway: httpx.AsyncClient, headers: dict[str, str], method: Method, rule: HttpRule
) -> None:
    response = await gateway.request(rule.verb, url(rule), headers=headers)

    kept = "private, no-cache"
    secret = method.secret_response or not response.is_success
    assert response.headers["cache-control"] == ("no-store" if secret else kept)


async def test_malformed_reply_of_a_worker_is_internal_with_outcome_unknown(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    for reply in (Reply(payload=b"\xff"), None):
        worker.reply = reply  # type: ignore[assignment]  # breaks the worker

        response = await gateway.post("/v1/posts", json={"title": "Hi"}, headers=headers)

        assert problem_of(response) == (500, "INTERNAL")
        assert response.json()["outcome"] == "UNKNOWN"
        assert response.headers["trace-id"] == response.json()["traceId"]


async def test_malformed_replies_of_a_worker_are_one_line_of_the_log(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    worker.reply = Reply(payload=b"\xff")

    with capture_logs() as lines:
        for _ in range(3):
            await gateway.post("/v1/posts", json={"title": "Hi"}, headers=headers)

    assert [line["event"] for line in lines] == ["reply.malformed"]


async def test_path_with_a_slash_at_its_end_is_another_path(gateway: httpx.AsyncClient) -> None:
    response = await gateway.get("/docs/")

    assert (response.status_code, response.json()["reason"]) == (404, "UNKNOWN_PATH")


async def test_405_beside_the_contract_has_the_allowed_verbs(gateway: httpx.AsyncClient) -> None:
    response = await gateway.post("/readyz")

    assert (response.status_code, response.json()["reason"]) == (405, "METHOD_NOT_ALLOWED")
    assert sorted(response.headers["allow"].split(", ")) == ["GET", "HEAD"]


async def test_failure_beside_the_contract_is_a_problem_without_details(
    app: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_health: Health) -> dict[str, bool]:
        raise RuntimeError("a secret")

    monkeypatch.setattr(Health, "parts", fail)
    transport = httpx.ASGITransport(app)  # raises the errors of the application
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        response = await client.get("/readyz")

    assert (response.status_code, response.json()["reason"]) == (500, "INTERNAL")
    assert "secret" not in response.text
