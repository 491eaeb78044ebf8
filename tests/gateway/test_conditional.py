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
    """A reply with a post, which fits every method that answers with one."""
    post = Post(id=POST_ID, title="Hi", version=7)
    for name, value in changes.items():
        setattr(post, name, value)
    return Reply(payload=encode(GetPostResponse(post=post)))


@pytest.fixture
def worker(worker: Worker) -> Worker:
    worker.reply = shown()
    return worker


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["reason"]


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
async def test_answer_with_a_version_has_an_etag_that_begins_with_it(
    gateway: httpx.AsyncClient, headers: dict[str, str], verb: str, path: str, begins: str
) -> None:
    body = {"title": "Hi"} if verb in ("PATCH", "POST") else None

    answer = await gateway.request(verb, path, json=body, headers=headers)

    assert answer.is_success
    assert answer.headers.get("etag", "")[:3] == begins


async def test_etag_of_what_has_no_version_is_a_hash(
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

    answer = await gateway.post("/v1/auth/login", json={"login": "a", "password": "b"})

    assert answer.status_code == 200
    assert "etag" not in answer.headers


async def test_etag_changes_with_what_does_not_count_as_a_version(
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
async def test_who_has_the_answer_gets_304(
    gateway: httpx.AsyncClient, verb: str, path: str, known: str
) -> None:
    etag = (await gateway.get(path)).headers["etag"]

    answer = await gateway.request(verb, path, headers={"If-None-Match": known.format(etag)})

    assert answer.status_code == 304
    assert answer.content == b""
    assert answer.headers["etag"] == etag
    assert "content-type" not in answer.headers


@pytest.mark.parametrize("known", ['"7"', '"7-0000000000000000"', "7", '"*"', '*, "x"', ""])
async def test_who_has_another_answer_gets_it_whole(gateway: httpx.AsyncClient, known: str) -> None:
    answer = await gateway.get(POST, headers={"If-None-Match": known})

    assert answer.status_code == 200
    assert answer.json()["version"] == "7"


@pytest.mark.parametrize(
    ("verb", "path"),
    [("PATCH", POST), ("DELETE", POST), ("POST", "/v1/posts"), ("PATCH", "/v1/me")],
)
@pytest.mark.parametrize("tags", ["*", 'W/"other", {}'])
async def test_change_is_not_made_where_if_none_match_names_what_is_there(
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

    answer = await gateway.request(verb, path, json=body, headers=sent)

    assert refusal(answer) == (412, "ALREADY_THERE")
    assert answer.json()["outcome"] == "NO_EFFECT"
    [(route, request)] = worker.requests
    assert route in READS
    assert f"Bearer {request.access_token}" == headers["Authorization"]


@pytest.mark.parametrize("tags", ['"other"', "nonsense", ""])
async def test_change_is_made_where_if_none_match_names_something_else(
    gateway: httpx.AsyncClient, headers: dict[str, str], tags: str
) -> None:
    sent = headers | {"If-None-Match": tags}

    answer = await gateway.patch(POST, json={"title": "Hi"}, headers=sent)

    assert answer.status_code == 200


async def test_change_is_made_where_nothing_can_be_read(
    gateway: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    answer = await gateway.put(LIKE, headers=headers | {"If-None-Match": "*"})

    assert answer.status_code == 200


async def test_change_of_what_is_not_there_is_left_to_its_worker(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    worker.reply = Reply(error=Error(code=Code.try_value(Code.NOT_FOUND), reason="POST_NOT_FOUND"))

    answer = await gateway.delete(POST, headers=headers | {"If-None-Match": "*"})

    assert refusal(answer) == (404, "POST_NOT_FOUND")
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
async def test_change_expects_the_version_that_if_match_names(
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
async def test_weak_tag_is_refused_with_advice(
    gateway: httpx.AsyncClient, headers: dict[str, str], value: str
) -> None:
    """A compressing proxy makes tags weak, and to read the post again would not help."""
    answer = await gateway.delete(POST, headers=headers | {"If-Match": value})

    assert refusal(answer) == (412, "VERSION_MISMATCH")
    assert answer.json()["detail"] == (
        "If-Match compares strongly, and a weak tag (W/) never matches: send the ETag without W/,"
        ' or "<version>".'
    )


@pytest.mark.parametrize("value", ["", ",", "7", '"7', '7"', '"7" "8"', '"7"; x', '*, "7"', "w/7"])
async def test_if_match_that_is_no_list_of_tags_is_refused(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str], value: str
) -> None:
    sent = headers | {"If-Match": value}

    change = await gateway.patch(POST, json={"title": "Hi"}, headers=sent)
    reading = await gateway.get(POST, headers=sent)

    assert refusal(change) == refusal(reading) == (400, "IF_MATCH_INVALID")
    assert worker.requests == []


async def test_change_of_one_version_out_of_several_is_refused(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    several = [*headers.items(), ("If-Match", '"7-a"'), ("If-Match", '"8-a"')]

    answer = await gateway.delete(POST, headers=several)

    assert refusal(answer) == (400, "IF_MATCH_INVALID")
    assert answer.json()["detail"] == "If-Match has several versions: send one."
    assert worker.requests == []


@pytest.mark.parametrize(("verb", "path"), [("PUT", LIKE), ("POST", "/v1/posts")])
@pytest.mark.parametrize("value", ['"7"', "*", "nonsense"])
async def test_change_that_compares_no_version_refuses_if_match(
    gateway: httpx.AsyncClient,
    worker: Worker,
    headers: dict[str, str],
    verb: str,
    path: str,
    value: str,
) -> None:
    body = {"title": "Hi"} if verb == "POST" else None

    answer = await gateway.request(verb, path, json=body, headers=headers | {"If-Match": value})

    assert refusal(answer) == (400, "IF_MATCH_UNSUPPORTED")
    assert worker.requests == []


async def test_reading_compares_the_versions_of_if_match_with_its_answer(
    gateway: httpx.AsyncClient,
) -> None:
    same = await gateway.get(POST, headers={"If-Match": '"6", "7-anything"'})
    other = await gateway.get(POST, headers={"If-Match": '"6", "8"'})
    etag = same.headers["etag"]
    both = await gateway.get(POST, headers={"If-Match": etag, "If-None-Match": etag})

    assert (same.status_code, both.status_code) == (200, 304)
    assert refusal(other) == (412, "VERSION_MISMATCH")


@pytest.mark.parametrize("value", ['"7"', "nonsense"])
async def test_reading_what_has_no_version_ignores_if_match(
    gateway: httpx.AsyncClient, value: str
) -> None:
    answer = await gateway.get("/v1/posts", headers={"If-Match": value})

    assert answer.status_code == 200


@pytest.mark.parametrize("name", ["expectedVersion", "expected_version"])
async def test_expected_version_is_no_parameter_and_no_member(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str], name: str
) -> None:
    body = {"title": "Hi"}

    answers = [
        await gateway.delete(f"{POST}?{name}=7", headers=headers),
        await gateway.patch(f"{POST}?{name}=7", json=body, headers=headers),
        await gateway.patch(POST, json=body | {name: "7"}, headers=headers),
    ]

    for answer in answers:
        assert refusal(answer) == (422, "INVALID_FIELDS")
        assert [each["field"] for each in answer.json()["violations"]] == [name]
    assert worker.requests == []


async def test_version_that_the_worker_finds_stale_is_412(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    code = Code.try_value(Code.FAILED_PRECONDITION)
    worker.reply = Reply(error=Error(code=code, reason="VERSION_MISMATCH"))

    answer = await gateway.delete(POST, headers=headers | {"If-Match": '"7"'})

    assert refusal(answer) == (412, "VERSION_MISMATCH")


@pytest.mark.parametrize("path", [POST, "/v1/posts"])
async def test_answer_that_was_given_before_says_so(
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


async def test_operation_that_is_still_running_is_to_be_asked_for_again(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    worker.reply = Reply(
        error=Error(
            code=Code.try_value(Code.ABORTED),
            reason="OPERATION_RUNNING",
            retry_after=timedelta(seconds=1),
        )
    )

    answer = await gateway.post("/v1/posts", json={"title": "Hi"}, headers=headers)

    assert refusal(answer) == (409, "OPERATION_RUNNING")
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("verb", "path", "status", "kept"),
    [
        ("GET", POST, 200, "private, no-cache"),
        ("GET", f"{POST}?nonsense=1", 422, "no-store"),
        ("DELETE", POST, 204, "private, no-cache"),
        ("PUT", POST, 405, "no-store"),
        ("POST", "/v1/auth/login", 200, "no-store"),
    ],
)
async def test_answer_says_whose_it_is_and_how_it_may_be_kept(
    gateway: httpx.AsyncClient,
    headers: dict[str, str],
    verb: str,
    path: str,
    status: int,
    kept: str,
) -> None:
    body = {"login": "a", "password": "b"} if verb == "POST" else None

    answer = await gateway.request(verb, path, json=body, headers=headers)

    assert answer.status_code == status
    assert answer.headers["vary"] == "Authorization"
    assert answer.headers["cache-control"] == kept


async def test_304_says_whose_it_is_and_how_it_may_be_kept(gateway: httpx.AsyncClient) -> None:
    answer = await gateway.get(POST, headers={"If-None-Match": "*"})

    assert answer.status_code == 304
    assert answer.headers["vary"] == "Authorization"
    assert answer.headers["cache-control"] == "no-cache"


async def test_error_of_a_worker_is_not_kept(gateway: httpx.AsyncClient, worker: Worker) -> None:
    worker.reply = Reply(error=Error(code=Code.try_value(Code.NOT_FOUND), reason="POST_NOT_FOUND"))

    answer = await gateway.get(POST)

    assert answer.status_code == 404
    assert answer.headers["cache-control"] == "no-store"
    assert "etag" not in answer.headers
