"""Parameters, bodies and update masks of requests become the request message, or are refused."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from gateway.parameters import find_field_path
from gateway.transcoding import Transcoder
from postbus.posts.v1 import ListPostsRequest, UpdatePostRequest
from postbus.registry import METHODS
from shared.errors import ServiceError
from shared.wire import decode, message_class
from tests.gateway.conftest import Worker
from tests.tokens import TokenMaker

POST_ID = "018f3f6e-0000-7000-8000-000000000001"
PATH = f"/v1/posts/{POST_ID}"
UPDATE = METHODS["postbus.posts.v1.PostsService.UpdatePost"]


@pytest.fixture
def headers(tokens: TokenMaker) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens.token('alice')}"}


@pytest.mark.parametrize(
    ("line", "body", "field", "rule"),
    [
        ("GET /v1/posts?pageSize=1&page_size=1", None, "pageSize", "duplicate"),
        ("GET /v1/posts?updatedSince=2026-01-01T00:00:00Z&updatedSince.seconds=1", None,
         "updatedSince.seconds", "duplicate"),
        ("GET /v1/posts?pageSize=", None, "pageSize", "format"),
        ("GET /v1/posts?nonsense=1", None, "nonsense", "unknown_field"),
        ("POST /v1/posts?summary=a", {"title": "a"}, "summary", "unknown_field"),
        (f"POST {PATH}:publish?expectedVersion=7", None, "expectedVersion", "duplicate"),
        (f"PATCH {PATH}", {"id": POST_ID.replace("1", "2")}, "id", "duplicate"),
        (f"PATCH {PATH}", {"expectedVersion": "7"}, "expectedVersion", "unknown_field"),
        (f"PATCH {PATH}", {"expected_version": "7"}, "expected_version", "unknown_field"),
        (f"PATCH {PATH}", {"updateMask": "nonsense"}, "updateMask", "unknown_field"),
        (f"PATCH {PATH}", {"updateMask": "updateMask"}, "updateMask", "unknown_field"),
    ],
)  # fmt: skip
async def test_field_that_the_request_cannot_set_is_a_violation(
    gateway: httpx.AsyncClient,
    worker: Worker,
    headers: dict[str, str],
    line: str,
    body: Any,
    field: str,
    rule: str,
) -> None:
    response = await gateway.request(*line.split(" "), json=body, headers=headers)

    assert response.status_code == 422
    assert [(each["field"], each["rule"]) for each in response.json()["violations"]] == [
        (field, rule)
    ]
    assert worker.requests == []


async def test_names_in_violations_are_truncated(
    gateway: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    long = "a" * 5000

    parameter = await gateway.get("/v1/posts", params={long: "1"})
    mask = await gateway.patch(PATH, json={"updateMask": long}, headers=headers)

    assert len(parameter.json()["violations"][0]["field"]) < 200
    assert len(mask.json()["violations"][0]["message"]) < 200


async def test_boolean_parameter_is_true_or_false(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    assert (await gateway.get("/v1/posts?includeTotal=true")).status_code == 200
    assert (await gateway.get("/v1/posts?includeTotal=1")).status_code == 422

    [(_, request)] = worker.requests
    assert decode(ListPostsRequest, request.payload) == ListPostsRequest(include_total=True)


def test_field_of_a_repeated_message_is_no_parameter() -> None:
    response: Any = message_class("postbus.posts.v1.ListPostsResponse").DESCRIPTOR

    assert find_field_path(response, "posts") is not None
    assert find_field_path(response, "posts.id") is None


@pytest.mark.parametrize(
    "body",
    [
        {"title": "a", "version": "3", "createdAt": "yesterday", "like_count": None},
        {"title": "a", "id": POST_ID},
    ],
    ids=["output-only members", "the id in the path"],
)
async def test_mask_of_a_patch_has_only_the_members_that_can_change(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str], body: dict[str, Any]
) -> None:
    assert (await gateway.patch(PATH, json=body, headers=headers)).status_code == 200

    [(_, request)] = worker.requests
    assert decode(UpdatePostRequest, request.payload).update_mask.paths == ["title"]


@pytest.mark.parametrize(
    ("body", "field"), [(b"null", "title"), (b'{"a": 1, "a": 2}', "title.a"), (b"[" * 200, "title")]
)
def test_violation_in_a_body_that_is_one_field_begins_with_the_field(
    body: bytes, field: str
) -> None:
    transcoder = Transcoder(UPDATE, replace(UPDATE.http[0], body="title"))

    with pytest.raises(ServiceError) as refused:
        transcoder.read({"id": POST_ID}, (), body)

    assert [each.field for each in refused.value.violations] == [field]
