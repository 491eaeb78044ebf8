"""Conditional and repeated requests over REST: ETag, If-Match, If-None-Match, replays, caches."""

from datetime import timedelta
from typing import Any

import httpx
import pytest

from gateway.conditional import entity_tag
from postbus.bus.v1 import Code, Error, Reply
from postbus.posts.v1 import (
    DeletePostRequest,
    GetPostResponse,
    ListPostsResponse,
    Post,
    UpdatePostRequest,
)
from shared.wire import decode, encode
from tests.gateway.conftest import Worker
from tests.tokens import TokenMaker

POST_ID = "018f3f6e-0000-7000-8000-000000000001"
POST = f"/v1/posts/{POST_ID}"
LIKE = f"{POST}/like"
READS = {
    "postbus.posts.v1.PostsService.GetPost",
    "postbus.posts.v1.PostsService.ListPosts",
    "postbus.users.v1.UsersService.GetMe",
}
HASH = "01e7b720ff566d53"
"""By `printf '{}' | b2sum -l 64`."""


@pytest.fixture
def headers(tokens: TokenMaker) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens.token('alice')}"}


def shown(**changes: Any) -> Reply:
    """Return a reply with a post, valid for every method that returns one."""
    post = Post(id=POST_ID, title="Hi", version=7)
    for name, value in changes.items():
        setattr(post, name, value)
    return Reply(payload=encode(GetPostResponse(post=post)))


@pytest.fixture
def worker(worker: Worker) -> Worker:
    worker.reply = shown()
    return worker


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["reason"]


def test_etag_is_version_and_hash_of_the_body() -> None:
    assert entity_tag(b"{}", 7) == f'"7-{HASH}"'
    assert entity_tag(b"{}", None) == f'"{HASH}"'


@pytest.mark.parametrize(
    ("verb", "path", "begins"),
    [
        ("GET", POST, '"7-'),
        ("HEAD", POST, '"7-'),
        ("PATCH", POST, '"7-'),
        ("POST", "/v1/posts", '"7-'),
        ("PUT", LIKE, '"7-'),
        ("DELETE", POST, ""),
    ],
)
async def test_etag_of_a_versioned_response_begins_with_the_version(
    gateway: httpx.AsyncClient, headers: dict[str, str], verb: str, path: str, begins: str
) -> None:
    body = {"title": "Hi"} if verb in ("PATCH", "POST") else None

    response = await gateway.request(verb, path, json=body, headers=headers)

    assert response.is_success
    assert response.headers.get("etag", "")[:3] == begins


async def test_etag_of_an_unversioned_response_is_a_hash(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    worker.reply = Reply(payload=encode(ListPostsResponse(total=3)))

    etag = (await gateway.get("/v1/posts")).headers["etag"]

    assert len(etag) == 18
    assert "-" not in etag


async def test_change_without_a_version_has_no_etag(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    worker.reply = Reply(payload=b"")

    response = await gateway.post("/v1/auth/login", json={"login": "a", "password": "b"})

    assert response.status_code == 200
    assert "etag" not in response.headers


async def test_etag_changes_with_counters_that_do_not_change_the_version(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    first = (await gateway.get(POST)).headers["etag"]
    again = (await gateway.get(POST)).headers["etag"]
    worker.reply = shown(like_count=1)
    liked = (await gateway.get(POST)).headers["etag"]

    assert first == again != liked
    assert liked.startswith('"7-')


@pytest.mark.parametrize("known", ["{}", "W/{}", '"other", ,\tW/"x,y" ,{},', "*", " * "])
@pytest.mark.parametrize("verb", ["GET", "HEAD"])
@pytest.mark.parametrize("path", [POST, "/v1/tags"])
async def test_matching_etag_gets_304(
    gateway: httpx.AsyncClient, verb: str, path: str, known: str
) -> None:
    etag = (await gateway.get(path)).headers["etag"]

    response = await gateway.request(verb, path, headers={"If-None-Match": known.format(etag)})

    assert response.status_code == 304
    assert response.content == b""
    assert response.headers["etag"] == etag
    assert "content-type" not in response.headers


@pytest.mark.parametrize("known", ['"7"', '"7-0000000000000000"', "7", '"*"', '*, "x"', ""])
async def test_other_etag_gets_the_full_response(gateway: httpx.AsyncClient, known: str) -> None:
    response = await gateway.get(POST, headers={"If-None-Match": known})

    assert response.status_code == 200
    assert response.json()["version"] == "7"


@pytest.mark.parametrize(
    ("verb", "path"),
    [("PATCH", POST), ("DELETE", POST), ("POST", "/v1/posts"), ("PATCH", "/v1/me")],
)
@pytest.mark.parametrize("tags", ["*", 'W/"other", {}'])
async def test_change_is_refused_if_if_none_match_contains_the_current_etag(
    gateway: httpx.AsyncClient,
    worker: Worker,
    headers: dict[str, str],
    verb: str,
    path: str,
    tags: str,
) -> None:
    etag = (await gateway.get(path, headers=headers)).headers["etag"]
    worker.requests.clear()
    body = {"title": "Hi"} if verb != "DELETE" and path != "/v1/me" else None
    sent = headers | {"If-None-Match": tags.format(etag)}

    response = await gateway.request(verb, path, json=body, headers=sent)

    assert refusal(response) == (412, "ALREADY_THERE")
    assert response.json()["outcome"] == "NO_EFFECT"
    [(route, request)] = worker.requests
    assert route in READS
    assert f"Bearer {request.access_token}" == headers["Authorization"]


@pytest.mark.parametrize("tags", ['"other"', "nonsense", ""])
async def test_change_is_made_if_if_none_match_contains_another_etag(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str], tags: str
) -> None:
    sent = headers | {"If-None-Match": tags}

    response = await gateway.patch(POST, json={"title": "Hi"}, headers=sent)

    assert response.status_code == 200
    assert worker.requests[-1][0] == "postbus.posts.v1.PostsService.UpdatePost"


async def test_change_of_an_unreadable_resource_ignores_if_none_match(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    response = await gateway.put(LIKE, headers=headers | {"If-None-Match": "*"})

    assert response.status_code == 200
    assert [route for route, _ in worker.requests] == ["postbus.posts.v1.PostsService.LikePost"]


async def test_change_is_not_made_if_the_current_etag_is_unknown(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    worker.reply = Reply(error=Error(code=Code.try_value(Code.UNAVAILABLE), reason="BUSY"))

    response = await gateway.delete(POST, headers=headers | {"If-None-Match": "*"})

    assert refusal(response) == (503, "BUSY")
    assert {route.rpartition(".")[2] for route, _ in worker.requests} == {"GetPost"}


async def test_change_of_a_missing_resource_is_refused_by_its_worker(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    worker.reply = Reply(error=Error(code=Code.try_value(Code.NOT_FOUND), reason="POST_NOT_FOUND"))

    conditions = {"If-None-Match": "*", "Request-Timeout": "20"}
    response = await gateway.delete(POST, headers=headers | conditions)

    assert refusal(response) == (404, "POST_NOT_FOUND")
    assert 0 < worker.requests[0][1].budget_ms <= 20_000
    assert [route.rpartition(".")[2] for route, _ in worker.requests] == ["GetPost", "DeletePost"]


@pytest.mark.parametrize(
    ("value", "version"),
    [
        (None, 0),
        ("*", 0),
        ('"7"', 7),
        (f'"7-{HASH}"', 7),
        ('"7-a", "7-b"', 7),
        (', "7-a,b" ,', 7),
        ('"foreign", W/"8", "7"', 7),
        ('"9223372036854775807"', 2**63 - 1),
    ],
)
async def test_change_expects_the_version_in_if_match(
    gateway: httpx.AsyncClient,
    worker: Worker,
    headers: dict[str, str],
    value: str | None,
    version: int,
) -> None:
    sent = headers | ({} if value is None else {"If-Match": value})

    changed = await gateway.patch(POST, json={"title": "Hi"}, headers=sent)
    deleted = await gateway.delete(POST, headers=sent)

    assert (changed.status_code, deleted.status_code) == (200, 204)
    [(_, change), (_, deletion)] = worker.requests
    request = decode(UpdatePostRequest, change.payload)
    assert (request.expected_version, request.update_mask.paths) == (version, ["title"])
    assert decode(DeletePostRequest, deletion.payload).expected_version == version


@pytest.mark.parametrize(
    "value",
    [
        'W/"7"',
        f'W/"7-{HASH}"',
        '"foreign"',
        f'"{"a" * 16}"',
        '""',
        '"0"',
        '"-7"',
        '"07"',
        '"9223372036854775808"',
        '"99999999999999999999999"',
        pytest.param(f'"{"9" * 5000}"', id="more digits than int() reads"),
    ],
)
async def test_tag_without_a_version_matches_nothing(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str], value: str
) -> None:
    sent = headers | {"If-Match": value}

    change = await gateway.patch(POST, json={"title": "Hi"}, headers=sent)
    reading = await gateway.get(POST, headers=sent)

    assert refusal(change) == refusal(reading) == (412, "VERSION_MISMATCH")
    assert [route.rpartition(".")[2] for route, _ in worker.requests] == ["GetPost"]


@pytest.mark.parametrize("value", ['W/"7"', f'W/"7-{HASH}"', '"foreign", W/"7"'])
async def test_refusal_of_a_weak_tag_names_the_valid_forms(
    gateway: httpx.AsyncClient, headers: dict[str, str], value: str
) -> None:
    """A compressing proxy makes tags weak, and to read the post again would not help."""
    response = await gateway.delete(POST, headers=headers | {"If-Match": value})

    assert refusal(response) == (412, "VERSION_MISMATCH")
    assert response.json()["detail"] == (
        "If-Match compares strongly, and a weak tag (W/) never matches: send the ETag without W/,"
        ' or "<version>".'
    )


@pytest.mark.parametrize("value", ["", ",", "7", '"7', '7"', '"7" "8"', '"7"; x', '*, "7"', "w/7"])
async def test_malformed_if_match_is_refused(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str], value: str
) -> None:
    sent = headers | {"If-Match": value}

    change = await gateway.patch(POST, json={"title": "Hi"}, headers=sent)
    reading = await gateway.get(POST, headers=sent)

    assert refusal(change) == refusal(reading) == (400, "IF_MATCH_INVALID")
    assert worker.requests == []


async def test_if_match_of_a_change_with_several_versions_is_refused(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    several = [*headers.items(), ("If-Match", '"7-a"'), ("If-Match", '"8-a"')]

    response = await gateway.delete(POST, headers=several)

    assert refusal(response) == (400, "IF_MATCH_INVALID")
    assert response.json()["detail"] == "If-Match has several versions: send one."
    assert worker.requests == []


@pytest.mark.parametrize(("verb", "path"), [("PUT", LIKE), ("POST", "/v1/posts")])
@pytest.mark.parametrize("value", ['"7"', "*", "nonsense"])
async def test_if_match_is_refused_by_a_change_without_an_expected_version(
    gateway: httpx.AsyncClient,
    worker: Worker,
    headers: dict[str, str],
    verb: str,
    path: str,
    value: str,
) -> None:
    body = {"title": "Hi"} if verb == "POST" else None

    response = await gateway.request(verb, path, json=body, headers=headers | {"If-Match": value})

    assert refusal(response) == (400, "IF_MATCH_UNSUPPORTED")
    assert worker.requests == []


async def test_if_match_of_a_read_is_compared_with_the_version_of_the_response(
    gateway: httpx.AsyncClient,
) -> None:
    same = await gateway.get(POST, headers={"If-Match": '"6", "7-anything"'})
    other = await gateway.get(POST, headers={"If-Match": '"6", "8"'})
    etag = same.headers["etag"]
    both = await gateway.get(POST, headers={"If-Match": etag, "If-None-Match": etag})

    assert (same.status_code, both.status_code) == (200, 304)
    assert refusal(other) == (412, "VERSION_MISMATCH")


@pytest.mark.parametrize("value", ['"7"', "nonsense"])
async def test_if_match_of_an_unversioned_read_is_ignored(
    gateway: httpx.AsyncClient, worker: Worker, value: str
) -> None:
    response = await gateway.get("/v1/posts", headers={"If-Match": value})

    assert response.status_code == 200
    assert [post["title"] for post in response.json()["posts"]] == ["Hi"]
    assert [route for route, _ in worker.requests] == ["postbus.posts.v1.PostsService.ListPosts"]


@pytest.mark.parametrize("name", ["expectedVersion", "expected_version"])
async def test_expected_version_in_query_or_body_is_refused(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str], name: str
) -> None:
    body = {"title": "Hi"}

    responses = [
        await gateway.delete(f"{POST}?{name}=7", headers=headers),
        await gateway.patch(f"{POST}?{name}=7", json=body, headers=headers),
        await gateway.patch(POST, json=body | {name: "7"}, headers=headers),
    ]

    for response in responses:
        assert refusal(response) == (422, "INVALID_FIELDS")
        assert [each["field"] for each in response.json()["violations"]] == [name]
    assert worker.requests == []


async def test_version_mismatch_at_the_worker_is_412(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    code = Code.try_value(Code.FAILED_PRECONDITION)
    worker.reply = Reply(error=Error(code=code, reason="VERSION_MISMATCH"))

    response = await gateway.delete(POST, headers=headers | {"If-Match": '"7"'})

    assert refusal(response) == (412, "VERSION_MISMATCH")


@pytest.mark.parametrize("path", [POST, "/v1/posts"])
async def test_replayed_response_has_the_replay_header(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str], path: str
) -> None:
    sent = headers | {"Idempotency-Key": "key-1"}
    verb = "DELETE" if path == POST else "POST"
    body = None if path == POST else {"title": "Hi"}

    first = await gateway.request(verb, path, json=body, headers=sent)
    worker.reply.replayed = True
    again = await gateway.request(verb, path, json=body, headers=sent)

    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.status_code == first.status_code
    assert again.content == first.content


async def test_running_operation_is_409_with_a_retry_hint(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    worker.reply = Reply(
        error=Error(
            code=Code.try_value(Code.ABORTED),
            reason="OPERATION_RUNNING",
            retry_after=timedelta(seconds=1),
        )
    )

    response = await gateway.post("/v1/posts", json={"title": "Hi"}, headers=headers)

    assert refusal(response) == (409, "OPERATION_RUNNING")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("verb", "path", "status", "kept", "vary"),
    [
        ("GET", POST, 200, "private, no-cache", "Authorization, Accept"),
        ("GET", f"{POST}?nonsense=1", 422, "no-store", "Authorization"),
        ("DELETE", POST, 204, "private, no-cache", "Authorization"),
        ("PUT", POST, 405, "no-store", "Authorization"),
        ("POST", "/v1/auth/login", 200, "no-store", "Authorization, Accept"),
    ],
)
async def test_response_has_vary_and_cache_control(
    gateway: httpx.AsyncClient,
    headers: dict[str, str],
    verb: str,
    path: str,
    status: int,
    kept: str,
    vary: str,
) -> None:
    body = {"login": "a", "password": "b"} if verb == "POST" else None

    response = await gateway.request(verb, path, json=body, headers=headers)

    assert response.status_code == status
    assert response.headers["vary"] == vary
    assert response.headers["cache-control"] == kept


async def test_304_has_vary_and_cache_control(gateway: httpx.AsyncClient) -> None:
    response = await gateway.get(POST, headers={"If-None-Match": "*"})

    assert response.status_code == 304
    assert response.headers["vary"] == "Authorization, Accept"
    assert response.headers["cache-control"] == "no-cache"


async def test_error_of_a_worker_is_not_cached(gateway: httpx.AsyncClient, worker: Worker) -> None:
    worker.reply = Reply(error=Error(code=Code.try_value(Code.NOT_FOUND), reason="POST_NOT_FOUND"))

    response = await gateway.get(POST)

    assert response.status_code == 404
    assert response.headers["cache-control"] == "no-store"
    assert "etag" not in response.headers
