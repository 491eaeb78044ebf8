"""The semantics of HTTP that every route of the contract shares (RFC 9110)."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from importlib.resources import files
from unittest.mock import ANY

import httpx
import pytest

from gateway.app import build_app
from gateway.targets import MAX_PARAMETERS
from postbus.bus.v1 import Code, Error, Reply
from postbus.posts.v1 import CreatePostResponse, Post, UpdatePostRequest
from postbus.registry import METHODS, Access, HttpRule, Method
from shared.bus.memory import MemoryBus
from shared.identity import TokenVerifier
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


def require_documented(rule: HttpRule, answer: httpx.Response) -> None:
    """The document names the status for this operation, and each header that depends on it."""
    response = DOCUMENT["paths"][rule.path][rule.verb.lower()]["responses"][str(answer.status_code)]
    if "$ref" in response:
        response = DOCUMENT["components"]["responses"][response["$ref"].rpartition("/")[2]]
    headers = {name.lower() for name in response["headers"]}
    special = {"accept", "accept-encoding", "accept-patch", "etag", "location", "retry-after"}
    assert special & answer.headers.keys() <= headers


def described(answer: httpx.Response) -> dict[str, str]:
    """Return the headers of an answer, each of which comes once; without its trace id."""
    assert len(answer.headers) == len(answer.headers.multi_items())
    headers = dict(answer.headers)
    assert re.fullmatch("[0-9a-f]{32}", headers.pop("trace-id"))
    return headers


def problem_of(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["reason"]


@pytest.fixture
def headers(tokens: TokenMaker) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens.token('alice')}"}


@pytest.fixture
async def open_gateway(bus: MemoryBus, verifier: TokenVerifier) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway that pages of PAGE may use."""
    app = build_app(bus, verifier, max_body_bytes=10_000, allowed_origins=(PAGE,))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.mark.parametrize(("method", "rule"), BINDINGS)
async def test_every_answer_has_the_security_headers(
    gateway: httpx.AsyncClient, headers: dict[str, str], method: Method, rule: HttpRule
) -> None:
    for sent in ({}, headers):
        answer = await gateway.request(rule.verb, url(rule), headers=sent)

        require_documented(rule, answer)
        assert SECURITY.items() <= answer.headers.items(), answer.text
        assert answer.headers["trace-id"]
        assert answer.headers["vary"] == "Authorization"


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
async def test_every_other_answer_has_them_once(
    gateway: httpx.AsyncClient, verb: str, path: str, status: int
) -> None:
    answer = await gateway.request(verb, path)

    assert answer.status_code == status
    for name, value in SECURITY.items():
        assert answer.headers.get_list(name) == [value]
    html = answer.headers.get("content-type", "").startswith("text/html")
    for name, value in OF_PAGES.items():
        assert answer.headers.get(name) == (value if html else None)


async def test_304_has_the_security_headers(gateway: httpx.AsyncClient) -> None:
    for path in (POST, "/openapi.json"):
        answer = await gateway.get(path, headers={"If-None-Match": "*"})

        assert answer.status_code == 304
        assert SECURITY.items() <= answer.headers.items()
        assert answer.headers["etag"]


@pytest.mark.parametrize("replayed", [False, True])
async def test_headers_of_a_success_are_complete_whatever_its_status(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str], replayed: bool
) -> None:
    payload = encode(CreatePostResponse(post=Post(id=POST_ID, version=1)))
    worker.reply = Reply(payload=payload, replayed=replayed)
    always = SECURITY | {"vary": "Authorization", "cache-control": "private, no-cache"}
    if replayed:
        always["idempotency-replayed"] = "true"
    with_content = always | {"content-type": "application/json", "etag": ANY, "content-length": ANY}

    created = await gateway.post("/v1/posts", json={"title": "Hi"}, headers=headers)
    read = await gateway.get(POST, headers=headers)
    known = await gateway.get(POST, headers=headers | {"If-None-Match": "*"})
    worker.reply = Reply(payload=b"", replayed=replayed)
    deleted = await gateway.delete(POST, headers=headers)

    assert [each.status_code for each in (created, read, known, deleted)] == [201, 200, 304, 204]
    assert described(created) == with_content | {"location": POST}
    assert described(read) == with_content
    assert described(known) == always | {"etag": read.headers["etag"]}
    assert described(deleted) == always


async def test_headers_of_a_problem_are_complete(gateway: httpx.AsyncClient) -> None:
    for path in (f"{POST}?nonsense=1", "/nowhere"):
        answer = await gateway.get(path)

        headers = {each: answer.headers[each] for each in described(answer)}
        headers.pop("vary", None)
        assert headers == SECURITY | {
            "content-type": "application/problem+json",
            "content-length": str(len(answer.content)),
            "cache-control": "no-store",
        }


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (1, "1"), (1.5, "2"), (600, "600")])
async def test_time_to_wait_is_rounded_up(
    gateway: httpx.AsyncClient, worker: Worker, seconds: float, header: str
) -> None:
    code, wait = Code.try_value(Code.UNAVAILABLE), timedelta(seconds=seconds)
    worker.reply = Reply(error=Error(code=code, reason="BUSY", retry_after=wait))

    answer = await gateway.get(POST)

    assert (answer.status_code, answer.headers["retry-after"]) == (503, header)


@pytest.mark.parametrize(
    ("token", "challenge"),
    [
        (None, 'Bearer realm="postbus"'),
        ("expired", 'Bearer realm="postbus", error="invalid_token"'),
        ("forged", 'Bearer realm="postbus", error="invalid_token"'),
    ],
)
async def test_401_says_whether_a_token_was_bad(
    gateway: httpx.AsyncClient, tokens: TokenMaker, token: str | None, challenge: str
) -> None:
    made = {"expired": tokens.token("alice", lifetime=timedelta(minutes=-1)), "forged": "x.y.z"}
    sent = {"Authorization": f"Bearer {made[token]}"} if token else {}

    answer = await gateway.get("/v1/me", headers=sent)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == challenge


async def test_401_of_an_ended_session_blames_the_token(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    code = Code.try_value(Code.UNAUTHENTICATED)
    worker.reply = Reply(error=Error(code=code, reason="SESSION_REVOKED"))

    answer = await gateway.get("/v1/me", headers=headers)

    assert answer.headers["www-authenticate"] == 'Bearer realm="postbus", error="invalid_token"'


async def test_401_of_a_worker_blames_no_token(gateway: httpx.AsyncClient, worker: Worker) -> None:
    code = Code.try_value(Code.UNAUTHENTICATED)
    worker.reply = Reply(error=Error(code=code, reason="LOGIN_FAILED"))

    answer = await gateway.post("/v1/auth/login", json={"login": "a", "password": "b"})

    assert answer.headers["www-authenticate"] == 'Bearer realm="postbus"'


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
        ("application/json;q=0, */*", 406),
        ("application/json;q=0.000", 406),
        ("*/*;q=0", 406),
        ("application/*;q=0, application/json", 200),
    ],
)
async def test_accept_that_excludes_json_is_406(
    gateway: httpx.AsyncClient, worker: Worker, accept: str, status: int
) -> None:
    answer = await gateway.get("/v1/posts", headers={"Accept": accept})

    assert answer.status_code == status
    assert len(worker.requests) == (status == 200)


async def test_accept_does_not_matter_without_content(
    gateway: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    answer = await gateway.delete(POST, headers=headers | {"Accept": "application/xml"})

    assert answer.status_code == 204


@pytest.mark.parametrize(("method", "rule"), WITH_BODY)
async def test_content_coding_is_refused_with_the_accepted_one(
    gateway: httpx.AsyncClient, headers: dict[str, str], method: Method, rule: HttpRule
) -> None:
    for coding in ("gzip", "br", "nonsense", "identity, gzip"):
        sent = headers | {"Content-Type": "application/json", "Content-Encoding": coding}

        answer = await gateway.request(rule.verb, url(rule), content=b"{}", headers=sent)

        require_documented(rule, answer)
        assert problem_of(answer) == (415, "CONTENT_ENCODING_UNSUPPORTED")
        assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(("method", "rule"), WITH_BODY)
async def test_wrong_media_type_is_refused_with_the_accepted_ones(
    gateway: httpx.AsyncClient, headers: dict[str, str], method: Method, rule: HttpRule
) -> None:
    for kind in ({"Content-Type": "text/plain"}, {}):
        answer = await gateway.request(rule.verb, url(rule), content=b"{}", headers=headers | kind)

        require_documented(rule, answer)
        assert problem_of(answer) == (415, "NOT_JSON")
        patch = "application/json, application/merge-patch+json" if rule.verb == "PATCH" else None
        assert answer.headers.get("accept-patch") == patch
        assert answer.headers.get("accept") == (None if patch else "application/json")


async def test_merge_patch_is_taken_for_patch(
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
async def test_body_that_nothing_reads_is_refused(
    gateway: httpx.AsyncClient,
    worker: Worker,
    headers: dict[str, str],
    method: Method,
    rule: HttpRule,
) -> None:
    answer = await gateway.request(
        rule.verb, url(rule), json={"expectedVersion": "99"}, headers=headers
    )

    require_documented(rule, answer)
    assert problem_of(answer) == (400, "BODY_UNEXPECTED")
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
    answer = await gateway.post("/v1/posts", content=chunks(), headers=typed)

    assert problem_of(answer) == (413, "BODY_TOO_LARGE")
    assert sent <= 12_000
    assert worker.requests == []


@pytest.mark.parametrize(
    "path", ["/v1/%70osts", "/%76%31/posts", "/v1/post%73", f"/v1/posts/{POST_ID[:-1]}%31"]
)
async def test_escape_without_need_names_the_same_resource(
    gateway: httpx.AsyncClient, path: str
) -> None:
    assert (await gateway.get(path)).status_code == 200


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
    answer = await raw_get(gateway, target)

    assert problem_of(answer) == (400, "MALFORMED_URL")
    assert worker.requests == []


async def raw_get(gateway: httpx.AsyncClient, target: str) -> httpx.Response:
    """Send a target as it stands; httpx would mend it."""
    request = gateway.build_request("GET", "/")
    request.url = httpx.URL("http://gateway/").copy_with(raw_path=target.encode())
    return await gateway.send(request)


async def test_query_has_a_largest_number_of_parameters(gateway: httpx.AsyncClient) -> None:
    most = await gateway.get("/v1/posts?" + "&".join(["x=1"] * MAX_PARAMETERS))
    more = await gateway.get("/v1/posts?" + "&".join(["x=1"] * (MAX_PARAMETERS + 1)))

    assert problem_of(most) == (422, "INVALID_FIELDS")
    assert problem_of(more) == (400, "MALFORMED_URL")


async def test_header_that_may_come_once_is_malformed_if_it_comes_twice(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    good = [*headers.items(), ("Content-Type", "application/json")]
    twice = [
        [*good, *headers.items()],
        [*good, ("Idempotency-Key", "a"), ("Idempotency-Key", "b")],
        [*good, ("Request-Timeout", "1"), ("Request-Timeout", "2")],
        [*good, ("Content-Type", "application/json")],
    ]

    answers = [await gateway.post("/v1/posts", content=b'{"title":"a"}', headers=h) for h in twice]

    assert [answer.status_code for answer in answers] == [401, 400, 400, 415]
    assert worker.requests == []


async def test_created_resource_has_a_location(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    worker.reply = Reply(payload=encode(CreatePostResponse(post=Post(id=POST_ID, version=1))))

    created = await gateway.post("/v1/posts", json={"title": "Hi"}, headers=headers)

    assert created.headers["location"] == POST
    assert (await gateway.get(created.headers["location"])).json()["id"] == POST_ID


@pytest.mark.parametrize(("method", "rule"), BINDINGS)
async def test_options_lists_the_verbs_of_a_path(
    gateway: httpx.AsyncClient, worker: Worker, method: Method, rule: HttpRule
) -> None:
    answer = await gateway.options(url(rule))

    assert answer.status_code == 204
    assert {rule.verb, "OPTIONS"} <= set(answer.headers["allow"].split(", "))
    assert not any(name.startswith("access-control-") for name in answer.headers)
    assert worker.requests == []


async def test_no_page_may_use_the_gateway_by_default(gateway: httpx.AsyncClient) -> None:
    answer = await gateway.get("/v1/posts", headers={"Origin": PAGE})

    assert answer.status_code == 200
    assert not any(name.startswith("access-control-") for name in answer.headers)


@pytest.mark.parametrize(("method", "rule"), BINDINGS)
async def test_page_of_an_allowed_origin_may_send_every_request(
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
    }

    answer = await open_gateway.options(url(rule), headers=sent)

    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert rule.verb in answer.headers["access-control-allow-methods"].split(", ")
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert set(allowed) == read_by_requests
    assert answer.headers["access-control-max-age"] == "600"
    assert "access-control-allow-credentials" not in answer.headers
    assert answer.headers["vary"] == "Authorization, Origin"


@pytest.mark.parametrize("path", ["/v1/posts", "/v1/posts?nonsense=1", "/openapi.json", "/none"])
async def test_page_of_an_allowed_origin_may_read_every_answer(
    open_gateway: httpx.AsyncClient, path: str
) -> None:
    answer = await open_gateway.get(path, headers={"Origin": PAGE})
    other = await open_gateway.get(path, headers={"Origin": "https://evil.example"})
    none = await open_gateway.get(path)

    assert answer.headers["access-control-allow-origin"] == PAGE
    exposed = set(answer.headers["access-control-expose-headers"].split(", "))
    assert exposed == {
        *("ETag", "Idempotency-Replayed", "Location", "RateLimit", "RateLimit-Policy"),
        *("Retry-After", "Trace-Id"),
    }
    assert "access-control-allow-credentials" not in answer.headers
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in none.headers
    for each in (answer, other, none):
        assert "Origin" in each.headers["vary"].split(", ")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"{PAGE}.evil.example", "*"])
async def test_page_of_another_origin_may_send_nothing(
    open_gateway: httpx.AsyncClient, origin: str
) -> None:
    sent = {"Origin": origin, "Access-Control-Request-Method": "GET"}

    answer = await open_gateway.options("/v1/posts", headers=sent)

    assert not any(name.startswith("access-control-") for name in answer.headers)


async def test_request_without_upgrade_is_told_to_upgrade(gateway: httpx.AsyncClient) -> None:
    answer = await gateway.get("/ws")

    assert problem_of(answer) == (426, "UPGRADE_REQUIRED")
    assert answer.headers["upgrade"] == "websocket"
    assert answer.headers["connection"].lower() == "upgrade"


@pytest.mark.parametrize(("method", "rule"), BINDINGS)
async def test_answer_to_one_user_is_in_no_shared_cache(
    gateway: httpx.AsyncClient, headers: dict[str, str], method: Method, rule: HttpRule
) -> None:
    answer = await gateway.request(rule.verb, url(rule), headers=headers)

    kept = "private, no-cache"
    secret = method.secret_response or not answer.is_success
    assert answer.headers["cache-control"] == ("no-store" if secret else kept)


async def test_fault_of_a_worker_is_internal_and_its_outcome_unknown(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    for reply in (Reply(payload=b"\xff"), None):
        worker.reply = reply  # type: ignore[assignment]  # breaks the worker

        answer = await gateway.post("/v1/posts", json={"title": "Hi"}, headers=headers)

        assert problem_of(answer) == (500, "INTERNAL")
        assert answer.json()["outcome"] == "UNKNOWN"
        assert answer.headers["trace-id"] == answer.json()["traceId"]
