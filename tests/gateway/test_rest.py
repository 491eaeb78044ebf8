"""REST requests at the gateway, valid and invalid, before and after the bus."""

import json
import re

import httpx
import pytest

from gateway.app import build_app
from gateway.gateway import Gateway
from postbus.bus.v1 import Code, Error, FieldViolation, Reply
from postbus.posts.v1 import (
    CreatePostRequest,
    CreatePostResponse,
    ListPostsRequest,
    Post,
    UpdatePostRequest,
)
from postbus.registry import METHODS, Access, Method
from shared.bus.memory import MemoryBus
from shared.wire import decode, encode
from tests.gateway.conftest import Worker
from tests.gateway.listening import open_socket
from tests.tokens import TokenMaker

POST_ID = "018f3f6e-0000-7000-8000-000000000001"


@pytest.fixture
def headers(tokens: TokenMaker) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens.token('alice')}"}


def problem_of(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["reason"]


async def test_body_becomes_the_request_message_and_the_reply_becomes_the_body(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    message = CreatePostResponse(post=Post(id=POST_ID, title="Hi", version=1))
    worker.reply = Reply(payload=encode(message))

    response = await gateway.post("/v1/posts", json={"title": "Hi", "body": "é"}, headers=headers)

    assert response.status_code == 201
    assert response.json()["id"] == POST_ID
    assert response.json()["version"] == "1"
    [(route, request)] = worker.requests
    assert route == "postbus.posts.v1.PostsService.CreatePost"
    assert decode(CreatePostRequest, request.payload) == CreatePostRequest(title="Hi", body="é")


async def test_call_carries_token_operation_id_trace_and_deadline(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    sent = headers | {
        "Idempotency-Key": "key-1",
        "traceparent": f"00-{trace}-b7ad6b7169203331-01",
        "Request-Timeout": "2.5",
    }

    response = await gateway.post("/v1/posts", json={"title": "Hi"}, headers=sent)

    [(_, request)] = worker.requests
    assert 2.3 < request.budget_ms / 1000 <= 2.5
    assert f"Bearer {request.access_token}" == headers["Authorization"]
    assert request.operation_id == "key-1"
    assert request.client_address == "127.0.0.1"
    assert request.traceparent.split("-")[1] == trace == response.headers["trace-id"]


async def test_call_without_request_timeout_has_the_timeout_of_its_method(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:

    await gateway.get("/v1/posts")

    [(_, request)] = worker.requests
    seconds = METHODS["postbus.posts.v1.PostsService.ListPosts"].timeout
    assert seconds - 0.2 < request.budget_ms / 1000 <= seconds


async def test_query_parameters_become_fields(gateway: httpx.AsyncClient, worker: Worker) -> None:
    query = {"pageSize": "5", "author_id": POST_ID}

    assert (await gateway.get("/v1/posts", params=query)).status_code == 200

    [(_, request)] = worker.requests
    expected = ListPostsRequest(page_size=5, author_id=POST_ID)
    assert decode(ListPostsRequest, request.payload) == expected


async def test_mask_of_a_patch_has_the_members_that_were_sent(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    await gateway.patch(f"/v1/posts/{POST_ID}", json={"body": None}, headers=headers)

    [(_, request)] = worker.requests
    message = decode(UpdatePostRequest, request.payload)
    assert (message.id, message.update_mask.paths, message.body) == (POST_ID, ["body"], None)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (400, "MALFORMED_JSON")),
        (b"{", (400, "MALFORMED_JSON")),
        (b'{"title": NaN}', (400, "MALFORMED_JSON")),
        (b'{"title": "\xff"}', (400, "MALFORMED_JSON")),
        (b'{"title": "\\ud800"}', (422, "INVALID_FIELDS")),
        (b'{"title": 1e400}', (422, "INVALID_FIELDS")),
        (b"[" * 9000, (422, "INVALID_FIELDS")),
        (b"[" * 200 + b"]" * 200, (422, "INVALID_FIELDS")),
        (b'{"title": "a", "title": "a"}', (422, "INVALID_FIELDS")),
        (b"[]", (400, "NOT_AN_OBJECT")),
        (b'"title"', (400, "NOT_AN_OBJECT")),
        (b"{}", (422, "INVALID_FIELDS")),
        (b'{"title": ""}', (422, "INVALID_FIELDS")),
        (b'{"title": 1}', (422, "INVALID_FIELDS")),
        (b'{"title": ["a"]}', (422, "INVALID_FIELDS")),
        (b'{"title": "a", "nonsense": 1}', (422, "INVALID_FIELDS")),
        (b'{"title": "a", "id": "x"}', (422, "INVALID_FIELDS")),
        (b'{"title": "' + b"a" * 20_000 + b'"}', (413, "BODY_TOO_LARGE")),
    ],
)
async def test_bad_body_is_a_problem_and_reaches_no_worker(
    gateway: httpx.AsyncClient,
    worker: Worker,
    headers: dict[str, str],
    body: bytes,
    expected: tuple[int, str],
) -> None:
    sent = headers | {"Content-Type": "application/json"}

    response = await gateway.post("/v1/posts", content=body, headers=sent)

    assert problem_of(response) == expected
    assert worker.requests == []


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/posts?pageSize=ten", "pageSize"),
        ("/v1/posts?pageSize=101", "pageSize"),
        ("/v1/posts?pageSize=-1", "pageSize"),
        ("/v1/posts?nonsense=1", "nonsense"),
        ("/v1/posts?authorId=not-an-id", "authorId"),
        ("/v1/users/a%00b", "username"),
    ],
)
async def test_bad_parameter_is_named(
    gateway: httpx.AsyncClient, worker: Worker, path: str, field: str
) -> None:
    response = await gateway.get(path)

    assert problem_of(response) == (422, "INVALID_FIELDS")
    assert [violation["field"] for violation in response.json()["violations"]] == [field]
    assert worker.requests == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("Content-Type", "text/plain", (415, "NOT_JSON")),
        ("Authorization", "Basic YTpi", (401, "TOKEN_INVALID")),
        ("Authorization", "Bearer", (401, "TOKEN_INVALID")),
        ("Idempotency-Key", "a b", (400, "IDEMPOTENCY_KEY_INVALID")),
        ("Idempotency-Key", "a" * 129, (400, "IDEMPOTENCY_KEY_INVALID")),
        ("Idempotency-Key", "", (400, "IDEMPOTENCY_KEY_INVALID")),
        ("Request-Timeout", "0", (400, "REQUEST_TIMEOUT_INVALID")),
        ("Request-Timeout", "soon", (400, "REQUEST_TIMEOUT_INVALID")),
        ("Request-Timeout", f"1.{'0' * 21}", (400, "REQUEST_TIMEOUT_INVALID")),
        ("Request-Timeout", "31", (400, "REQUEST_TIMEOUT_INVALID")),
    ],
)
async def test_bad_header_is_a_problem(
    gateway: httpx.AsyncClient,
    worker: Worker,
    headers: dict[str, str],
    name: str,
    value: str,
    expected: tuple[int, str],
) -> None:
    sent = {"Content-Type": "application/json", **headers, name: value}

    response = await gateway.post("/v1/posts", content=b'{"title": "Hi"}', headers=sent)

    assert problem_of(response) == expected
    assert worker.requests == []


async def test_access_token_of_another_scheme_is_refused(
    gateway: httpx.AsyncClient, worker: Worker, tokens: TokenMaker
) -> None:
    token = tokens.token("alice")

    basic = await gateway.get("/v1/posts", headers={"Authorization": f"Basic {token}"})
    bearer = await gateway.get("/v1/posts", headers={"Authorization": f"bearer {token}"})

    assert problem_of(basic) == (401, "TOKEN_INVALID")
    assert bearer.status_code == 200
    assert len(worker.requests) == 1


async def test_invalid_token_is_refused_by_public_methods(gateway: httpx.AsyncClient) -> None:
    response = await gateway.get("/v1/posts", headers={"Authorization": "Bearer x.y.z"})

    assert problem_of(response) == (401, "TOKEN_INVALID")


@pytest.mark.parametrize("query", ["q=%FF", "q=%C3", "q=%zz", "q=%", "%FF=1", "tag=a%ED%A0%80"])
async def test_query_that_is_not_percent_encoded_text_is_malformed(
    gateway: httpx.AsyncClient, worker: Worker, query: str
) -> None:
    response = await gateway.get(f"/v1/posts?{query}")

    assert problem_of(response) == (400, "MALFORMED_URL")
    assert worker.requests == []


async def test_path_that_is_not_percent_encoded_text_is_malformed(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    response = await gateway.get("/v1/users/a%FF")

    assert problem_of(response) == (400, "MALFORMED_URL")
    assert worker.requests == []


@pytest.mark.parametrize("digits", ["%D9%A5", "%EF%BC%95", "%E0%A5%AB", "+5", "0x5"])
async def test_number_in_a_query_has_ascii_digits(
    gateway: httpx.AsyncClient, worker: Worker, digits: str
) -> None:
    response = await gateway.get(f"/v1/posts?pageSize={digits}")

    assert problem_of(response) == (422, "INVALID_FIELDS")
    assert [each["field"] for each in response.json()["violations"]] == ["pageSize"]
    assert worker.requests == []


async def test_query_is_form_encoded(gateway: httpx.AsyncClient, worker: Worker) -> None:
    await gateway.get("/v1/posts?q=a+b%20c%2Bd&tag=%C3%A9&&")

    [(_, request)] = worker.requests
    assert decode(ListPostsRequest, request.payload) == ListPostsRequest(q="a b c+d", tag="é")


async def test_error_of_the_worker_keeps_code_reason_and_violations(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    worker.reply = Reply(
        error=Error(
            code=Code.try_value(Code.FAILED_PRECONDITION),
            reason="STALE",
            message="Read it again.",
            violations=[FieldViolation(field="etag", rule="equal", message="differs")],
        )
    )

    response = await gateway.get(f"/v1/posts/{POST_ID}")

    assert problem_of(response) == (412, "STALE")
    body = response.json()
    assert (body["code"], body["detail"]) == ("FAILED_PRECONDITION", "Read it again.")
    assert body["violations"] == [{"field": "etag", "rule": "equal", "message": "differs"}]
    assert body["traceId"] == response.headers["trace-id"]


async def test_query_cannot_set_fields_of_path_or_body(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    over_path = await gateway.get(f"/v1/posts/{POST_ID}?id={POST_ID.replace('1', '2')}")
    over_body = await gateway.post(
        "/v1/auth/login?password=x", json={"login": "a", "password": "b"}
    )

    for response, name in ((over_path, "id"), (over_body, "password")):
        assert problem_of(response) == (422, "INVALID_FIELDS")
        assert [each["field"] for each in response.json()["violations"]] == [name]
    assert worker.requests == []


async def test_unknown_path_and_method_are_problems(gateway: httpx.AsyncClient) -> None:
    unknown = await gateway.get("/v1/nonsense")
    slash = await gateway.get("/v1/posts/")
    wrong_verb = await gateway.put(f"/v1/posts/{POST_ID}")

    assert problem_of(unknown) == problem_of(slash) == (404, "UNKNOWN_PATH")
    assert problem_of(wrong_verb) == (405, "METHOD_NOT_ALLOWED")
    assert wrong_verb.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH"


async def test_method_without_a_worker_is_a_503_with_a_retry_hint(verifier: object) -> None:
    app = build_app(MemoryBus(), verifier, max_body_bytes=1000)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        response = await client.get("/v1/posts")

    assert problem_of(response) == (503, "NO_ROUTE")
    assert response.headers["retry-after"] == "1"


INTERNAL = [method for method in METHODS.values() if method.access is Access.INTERNAL]


@pytest.mark.parametrize("method", INTERNAL, ids=lambda method: method.name)
async def test_internal_methods_have_no_route(
    app: Gateway, gateway: httpx.AsyncClient, tokens: TokenMaker, worker: Worker, method: Method
) -> None:
    document = (await gateway.get("/openapi.json")).text
    for path in (f"/{method.name}", "/" + "/".join(method.name.rsplit(".", 1)), *_paths(method)):
        assert problem_of(await gateway.post(path, json={})) == (404, "UNKNOWN_PATH")
    async with open_socket(app) as socket:
        await socket.request({"id": "1", "authenticate": {"accessToken": tokens.token("alice")}})
        frame = await socket.request({"id": "2", "call": {"method": method.name}})

    assert method.name not in document
    assert frame["error"]["code"] == "CODE_UNIMPLEMENTED"
    assert frame["error"]["reason"] == "UNKNOWN_METHOD"
    assert worker.requests == []


def _paths(method: Method) -> list[str]:
    return [rule.path for rule in method.http]


def test_registry_has_internal_methods() -> None:
    assert {method.name.rsplit(".", 2)[-2] for method in INTERNAL} >= {
        "HealthService",
        "WorkerService",
    }


NEED_A_BODY = {
    "POST /v1/auth/login",
    "POST /v1/auth/password",
    "POST /v1/auth/refresh",
    "POST /v1/auth/signup",
    "POST /v1/posts",
    "POST /v1/posts/{postId}/comments",
    "PATCH /v1/comments/{id}",
}
"""Operations whose request has a required field in the body."""


async def test_every_documented_path_is_served(
    gateway: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    document = (await gateway.get("/openapi.json")).json()
    statuses = {
        f"{verb.upper()} {path}": (
            await gateway.request(verb, re.sub(r"{\w+}", POST_ID, path), headers=headers)
        ).status_code
        for path, verbs in document["paths"].items()
        for verb in verbs
    }

    refused = {operation for operation, status in statuses.items() if status == 422}
    assert refused == NEED_A_BODY
    served = {name: status for name, status in statuses.items() if name not in NEED_A_BODY}
    assert {name for name, status in served.items() if status not in (200, 201, 204)} == set()
    assert {status for name, status in served.items() if name.startswith("GET ")} == {200}


async def test_metrics_count_head_apart_from_get(gateway: httpx.AsyncClient) -> None:
    await gateway.head("/v1/posts")

    text = (await gateway.get("/metrics")).text

    counted = [line for line in text.splitlines() if 'route="/v1/posts"' in line]
    assert any('method="HEAD"' in line for line in counted)
    assert not any('method="GET"' in line for line in counted)


async def test_metrics_count_by_route_template(gateway: httpx.AsyncClient) -> None:
    await gateway.get(f"/v1/posts/{POST_ID}")
    await gateway.get("/made/up/by/an/outsider")

    text = (await gateway.get("/metrics")).text

    assert 'postbus_http_requests_total{method="GET",route="/v1/posts/{id}",status="200"}' in text
    assert 'route="none",status="404"' in text
    assert "outsider" not in text


async def test_documentation_page_needs_no_other_host(gateway: httpx.AsyncClient) -> None:
    page = await gateway.get("/docs")

    assert page.status_code == 200
    assert "https://" not in page.text
    assert json.loads((await gateway.get("/openapi.json")).text)["openapi"].startswith("3.1")
