"""Binary bodies over REST: negotiation, validators, malformed and hostile bytes, every route."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.binary_messages import remove_unknown
from gateway.transcoding import Transcoder
from postbus.bus.v1 import Code, Error, Reply
from postbus.posts.v1 import (
    CreatePostRequest,
    GetPostResponse,
    Post,
    UpdatePostRequest,
)
from postbus.registry import METHODS, Access, HttpRule, Method
from shared.errors import ServiceError
from shared.wire import decode, encode, message_class
from tests.contract.kinds import canonical, examples, fill
from tests.gateway.conftest import Worker
from tests.tokens import TokenMaker

POST_ID = "018f3f6e-0000-7000-8000-000000000001"
POST = f"/v1/posts/{POST_ID}"
PROTOBUF = "application/protobuf"
SENT = {"Content-Type": PROTOBUF}
BINARY = {"Accept": PROTOBUF}
SHOWN = GetPostResponse(post=Post(id=POST_ID, title="Hé", version=7))
BINDINGS = [
    pytest.param(method, rule, id=f"{rule.verb} {rule.path}")
    for method in METHODS.values()
    for rule in method.http
    if method.access is not Access.INTERNAL and not method.streams
]
WITH_BODY = [each for each in BINDINGS if each.values[1].body]  # type: ignore[union-attr]
many = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=20)


@pytest.fixture
def headers(tokens: TokenMaker) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens.token('alice')}"}


@pytest.fixture
def worker(worker: Worker) -> Worker:
    worker.reply = Reply(payload=encode(SHOWN))
    return worker


def problem_of(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["reason"]


def outcome(read: Callable[[], Any]) -> tuple[bytes, set[tuple[str, str]]]:
    """Return the message, or the fields and rules of the violations."""
    try:
        return canonical(read()), set()
    except ServiceError as error:
        return error.reason.encode(), {(each.field, each.rule) for each in error.violations}


@pytest.mark.parametrize(("method", "rule"), WITH_BODY)
@many
@given(data=st.data())
def test_binary_request_to_any_route_is_read_as_the_json_one(
    method: Method, rule: HttpRule, data: st.DataObject
) -> None:
    kind: Any = message_class(method.request_name)
    message: Any = fill(kind(), data.draw(examples(kind.DESCRIPTOR, tame=True)))
    if hasattr(message, "update_mask") and not message.update_mask.paths:
        message.update_mask.paths.append("title")
    parameters = {
        path: data.draw(st.sampled_from([POST_ID, "a", str(getattr(message, path, "")) or "b"]))
        for path, _ in rule.variables
    }
    transcoder = Transcoder(method, rule)
    document = orjson.dumps(json_format.MessageToDict(message))

    assert outcome(
        lambda: transcoder.read(parameters, (), message.SerializeToString(), PROTOBUF)
    ) == outcome(lambda: transcoder.read(parameters, (), document))


@pytest.mark.parametrize(("method", "rule"), BINDINGS)
@many
@given(data=st.data())
def test_binary_response_of_any_route_is_the_json_one(
    method: Method, rule: HttpRule, data: st.DataObject
) -> None:
    kind: Any = message_class(method.response_name)
    transcoder = Transcoder(method, rule)
    message: Any = fill(kind(), data.draw(examples(kind.DESCRIPTOR, tame=True)))
    part = getattr(message, rule.response_body) if rule.response_body else message

    written = transcoder.write(message, PROTOBUF)

    document = orjson.loads(transcoder.write(message)) or {}
    assert canonical(type(part).FromString(written)) == canonical(part)
    assert canonical(json_format.ParseDict(document, type(part)())) == canonical(part)


async def test_binary_body_becomes_the_request_and_the_reply_becomes_binary(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    sent = CreatePostRequest(title="Hi", body="é")

    response = await gateway.post(
        "/v1/posts", content=encode(sent), headers=headers | SENT | BINARY
    )

    assert response.status_code == 201
    assert response.headers["content-type"] == PROTOBUF
    assert response.headers["location"] == POST
    assert decode(Post, response.content) == SHOWN.post
    assert decode(CreatePostRequest, worker.requests[0][1].payload) == sent


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/protobuf", "application/protobuf"),
        ("Application/Protobuf; version=1", "application/protobuf"),
        ("application/x-protobuf", "application/x-protobuf"),
        ("application/x-protobuf, application/protobuf", "application/protobuf"),
        ("application/protobuf, application/json", "application/json"),
        ("application/protobuf, application/json;q=0.9", "application/protobuf"),
        ("application/protobuf;q=0.5, */*;q=0.4", "application/protobuf"),
        ("application/protobuf;q=0.5, */*", "application/json"),
        ("application/json;q=0, */*", "application/protobuf"),
        ("text/html, */*;q=0.8", "application/json"),
        ("application/protobuf;q=x, application/json;q=0.9", "application/protobuf"),
    ],
)
async def test_accept_chooses_the_media_type_of_the_response(
    gateway: httpx.AsyncClient, worker: Worker, accept: str | None, kind: str
) -> None:
    gateway.headers.pop("accept")

    response = await gateway.get(POST, headers={"Accept": accept} if accept else {})

    assert response.headers["content-type"] == kind
    assert response.headers["vary"] == "Authorization, Accept"
    binary = None if kind == "application/json" else decode(Post, response.content)
    assert binary in (None, SHOWN.post)


async def test_refusal_names_both_media_types(gateway: httpx.AsyncClient) -> None:
    response = await gateway.get(POST, headers={"Accept": "text/html"})

    assert problem_of(response) == (406, "NOT_ACCEPTABLE")
    assert "application/json or application/protobuf" in response.json()["detail"]


async def test_errors_are_problems_in_json(gateway: httpx.AsyncClient, worker: Worker) -> None:
    worker.reply = Reply(error=Error(code=Code.try_value(Code.NOT_FOUND), reason="POST_NOT_FOUND"))

    response = await gateway.get(POST, headers=BINARY)

    assert problem_of(response) == (404, "POST_NOT_FOUND")


async def test_etag_is_that_of_the_media_type(gateway: httpx.AsyncClient, worker: Worker) -> None:
    json, binary = await gateway.get(POST), await gateway.get(POST, headers=BINARY)
    known = {"If-None-Match": binary.headers["etag"]}

    assert json.headers["etag"] != binary.headers["etag"]
    assert [each.headers["etag"][:3] for each in (json, binary)] == ['"7-', '"7-']
    assert (await gateway.get(POST, headers=known | BINARY)).status_code == 304
    assert (await gateway.get(POST, headers=known)).status_code == 200


async def test_if_none_match_of_a_change_knows_the_etag_of_each_media_type(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    for sent in (BINARY, {"Accept": "application/json"}):
        known = (await gateway.get(POST, headers=headers | sent)).headers["etag"]

        response = await gateway.delete(POST, headers=headers | {"If-None-Match": known})

        assert problem_of(response) == (412, "ALREADY_THERE")


async def test_head_has_the_headers_of_the_binary_response(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    got, head = await gateway.get(POST, headers=BINARY), await gateway.head(POST, headers=BINARY)

    assert head.headers["content-type"] == PROTOBUF
    assert head.headers["etag"] == got.headers["etag"]
    assert head.headers["content-length"] == str(len(got.content))


async def test_if_match_sets_the_version_of_a_binary_change(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    change = message_class("postbus.posts.v1.UpdatePostRequest")(title="Hi")
    change.update_mask.paths.append("title")  # type: ignore[attr-defined]  # upb's own class
    sent = headers | SENT | {"If-Match": '"7"'}

    response = await gateway.patch(POST, content=change.SerializeToString(), headers=sent)
    change.expected_version = 7  # type: ignore[attr-defined]
    refused = await gateway.patch(POST, content=change.SerializeToString(), headers=sent)

    assert response.status_code == 200
    [(_, request)] = worker.requests
    got = decode(UpdatePostRequest, request.payload)
    assert (got.id, got.expected_version, got.update_mask.paths) == (POST_ID, 7, ["title"])
    assert [(each["field"], each["rule"]) for each in refused.json()["violations"]] == [
        ("expectedVersion", "unknown_field")
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05Hi",
        b"\x0a\x02\xff\xfe",
        b"\xff" * 11,
        b"\x0b" * 200,
        b'{"title": "Hi"}',
    ],
    ids=["a tag", "truncated", "no UTF-8", "an endless tag", "groups", "JSON"],
)
async def test_malformed_bytes_are_refused(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str], data: bytes
) -> None:
    response = await gateway.post("/v1/posts", content=data, headers=headers | SENT)

    assert problem_of(response) == (400, "MALFORMED_MESSAGE")
    assert worker.requests == []


def test_levels_are_limited_to_100() -> None:
    """The limit of upb, which parses such a message on the stack of C."""
    method = METHODS["postbus.posts.v1.PostsService.CreatePost"]
    transcoder = Transcoder(method, method.http[0])
    data = b"\xfb\x7f" * 120 + b"\xfc\x7f" * 120  # groups with an unknown number

    with pytest.raises(ServiceError, match="MALFORMED_MESSAGE"):
        transcoder.read({}, (), data, PROTOBUF)


def test_list_that_is_too_long_is_refused_before_its_elements_are_read() -> None:
    method = METHODS["postbus.posts.v1.PostsService.CreatePost"]
    transcoder = Transcoder(method, method.http[0])
    [number] = [
        field.number
        for field in message_class(method.request_name).DESCRIPTOR.fields
        if field.name == "tags"
    ]

    with pytest.raises(ServiceError) as refused:
        transcoder.read({}, (), bytes([number << 3 | 2, 0]) * 500_000, PROTOBUF)

    assert [(each.field, each.rule) for each in refused.value.violations] == [
        ("tags", "repeated.max_items")
    ]


def test_unknown_fields_are_removed_from_messages_of_bounded_size() -> None:
    kind: Any = message_class("postbus.posts.v1.GetPostResponse")
    message = kind.FromString(b"\x0a\x08\x1a\x02Hi\xfa\x7f\x01x" + b"\xf8\x7f\x01")

    assert remove_unknown(message)
    assert message.SerializeToString() == kind(post={"title": "Hi"}).SerializeToString()
    assert not remove_unknown(message)
    with pytest.raises(ServiceError, match="INVALID_FIELDS"):
        remove_unknown(kind(post={"tags": [""] * 1001}))


async def test_body_of_another_type_names_the_accepted_ones(
    gateway: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    sent = headers | {"Content-Type": "application/octet-stream"}

    response = await gateway.post("/v1/posts", content=b"\x0a\x02Hi", headers=sent)

    assert problem_of(response) == (415, "NOT_JSON")
    assert response.json()["detail"] == "Send the body as application/json or application/protobuf."


async def test_content_coding_of_a_binary_body_is_refused(
    gateway: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    sent = headers | SENT | {"Content-Encoding": "gzip"}

    response = await gateway.post("/v1/posts", content=b"", headers=sent)

    assert problem_of(response) == (415, "CONTENT_ENCODING_UNSUPPORTED")


async def test_older_name_of_the_type_is_accepted_with_parameters(
    gateway: httpx.AsyncClient, worker: Worker, headers: dict[str, str]
) -> None:
    kind = "application/x-protobuf; messageType=postbus.posts.v1.CreatePostRequest"

    response = await gateway.post(
        "/v1/posts", content=b"\x0a\x02Hi", headers=headers | {"Content-Type": kind}
    )

    assert response.status_code == 201
    assert response.headers["content-type"] == "application/json"


def test_body_that_is_a_list_or_a_text_is_only_json() -> None:
    """Such a body has no binary form of its own."""
    create = METHODS["postbus.posts.v1.PostsService.CreatePost"]
    tags = METHODS["postbus.posts.v1.PostsService.ListTags"]
    [field] = [each.json_name for each in message_class(tags.response_name).DESCRIPTOR.fields][:1]

    for body in ("tags", "title"):
        assert Transcoder(create, replace(create.http[0], body=body)).request_types == (
            "application/json",
        )
    listed = Transcoder(tags, replace(tags.http[0], response_body=field))
    assert listed.response_types == ("application/json",)
