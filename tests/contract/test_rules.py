"""Validation rules: the gateway and the worker refuse the same requests."""

import json
from importlib.resources import files
from typing import Any

import pytest
from google.protobuf import json_format
from pydantic import ValidationError

from gateway.transcoding import Transcoder
from postbus.described import DESCRIBED
from postbus.registry import METHODS, HttpRule
from postbus.rest import REQUESTS
from shared.errors import ServiceError
from shared.wire import find_violations, message_class

UUID = "018f3f6e-0000-7000-8000-000000000001"
SIGN_UP = {"username": "alice", "email": "alice@example.com", "password": "12345678"}

GOOD: list[tuple[str, dict[str, Any]]] = [
    ("users.v1.SignUpRequest", SIGN_UP),
    ("users.v1.SignUpRequest", SIGN_UP | {"email": "a+b@x"}),
    ("users.v1.SignUpRequest", SIGN_UP | {"password": "ä" * 128}),
    ("users.v1.LogInRequest", {"login": "ä ö", "password": "x"}),
    ("users.v1.GetUserRequest", {"username": "_"}),
    ("posts.v1.CreatePostRequest", {"title": "\U0001d4b3" * 200}),
    ("posts.v1.CreatePostRequest", {"title": "x", "body": "b" * 100_000}),
    ("posts.v1.GetPostRequest", {"id": "a-title"}),
    ("posts.v1.DeletePostRequest", {"id": UUID.upper()}),
    ("posts.v1.ListPostsRequest", {}),
    ("posts.v1.ListPostsRequest", {"authorId": "", "pageSize": 100, "pageToken": ""}),
    ("posts.v1.UpdatePostRequest", {"id": UUID, "title": "x"}),
    ("posts.v1.UpdatePostRequest", {"id": UUID, "title": None}),
]
BAD: list[tuple[str, dict[str, Any], set[str]]] = [
    ("users.v1.SignUpRequest", SIGN_UP | {"username": "al"}, {"username"}),
    ("users.v1.SignUpRequest", SIGN_UP | {"username": "1alice"}, {"username"}),
    ("users.v1.SignUpRequest", SIGN_UP | {"username": "alice\n"}, {"username"}),
    ("users.v1.SignUpRequest", SIGN_UP | {"username": "\u0430lice"}, {"username"}),
    ("users.v1.SignUpRequest", SIGN_UP | {"email": "alice"}, {"email"}),
    ("users.v1.SignUpRequest", SIGN_UP | {"email": "alice@example.com\n"}, {"email"}),
    ("users.v1.SignUpRequest", SIGN_UP | {"email": "a@" + "b" * 64}, {"email"}),
    ("users.v1.SignUpRequest", SIGN_UP | {"password": "1234567"}, {"password"}),
    ("users.v1.SignUpRequest", SIGN_UP | {"password": "ä" * 129}, {"password"}),
    ("users.v1.LogInRequest", {"login": "a\x00b", "password": "x"}, {"login"}),
    ("users.v1.LogInRequest", {"login": "", "password": ""}, {"login", "password"}),
    ("users.v1.GetUserRequest", {"username": "a" * 41}, {"username"}),
    ("posts.v1.CreatePostRequest", {"title": ""}, {"title"}),
    ("posts.v1.CreatePostRequest", {"title": "\U0001d4b3" * 201}, {"title"}),
    ("posts.v1.CreatePostRequest", {"title": "x", "body": "b" * 100_001}, {"body"}),
    ("posts.v1.GetPostRequest", {"id": "a" * 251}, {"id"}),
    ("posts.v1.DeleteCommentRequest", {"id": UUID + "\n"}, {"id"}),
    ("posts.v1.DeleteCommentRequest", {"id": UUID.replace("-", "")}, {"id"}),
    ("posts.v1.DeletePostRequest", {"id": ""}, {"id"}),
    ("posts.v1.ListPostsRequest", {"authorId": "x", "pageSize": 101}, {"authorId", "pageSize"}),
    ("posts.v1.ListPostsRequest", {"pageSize": -1}, {"pageSize"}),
    ("posts.v1.UpdatePostRequest", {"id": UUID, "title": ""}, {"title"}),
]


RULE = HttpRule(verb="POST", path="/", variables=(), body="*", response_body="", status=200)

Violations = set[tuple[str, str]]
"""Field and rule."""


def refused_by_gateway(name: str, document: dict[str, Any]) -> Violations:
    method = next(method for method in METHODS.values() if method.request_name == name)
    try:
        Transcoder(method, RULE).read({}, [], json.dumps(document).encode())
    except ServiceError as error:
        return {(violation.field, violation.rule) for violation in error.violations}
    return set()


def refused_by_worker(name: str, document: dict[str, Any]) -> Violations:
    message = json_format.ParseDict(document, message_class(name)())
    return {(violation.field, violation.rule) for violation in find_violations(message)[0]}


@pytest.mark.parametrize(("name", "document"), GOOD)
def test_valid_request_passes_gateway_and_worker(name: str, document: dict[str, Any]) -> None:
    full_name = f"postbus.{name}"

    assert refused_by_gateway(full_name, document) == set()
    assert refused_by_worker(full_name, document) == set()


@pytest.mark.parametrize(("name", "document", "fields"), BAD)
def test_invalid_request_is_refused_by_gateway_and_worker(
    name: str, document: dict[str, Any], fields: set[str]
) -> None:
    full_name = f"postbus.{name}"

    assert {field for field, _ in refused_by_gateway(full_name, document)} == fields
    assert refused_by_worker(full_name, document) == refused_by_gateway(full_name, document)


@pytest.mark.parametrize(("name", "document"), GOOD)
def test_model_accepts_what_the_reader_accepts(name: str, document: dict[str, Any]) -> None:
    REQUESTS[f"postbus.{name}"].model_validate(document)


@pytest.mark.parametrize(("name", "document", "fields"), BAD)
def test_model_refuses_what_the_reader_refuses(
    name: str, document: dict[str, Any], fields: set[str]
) -> None:
    with pytest.raises(ValidationError) as raised:
        REQUESTS[f"postbus.{name}"].model_validate(document)

    assert {str(each["loc"][0]) for each in raised.value.errors()} <= fields


@pytest.mark.parametrize("title", ["   ", "a\nb", "a\u202eb"])
def test_violated_pattern_is_described_by_the_comment_of_the_field(title: str) -> None:
    kind = message_class("postbus.posts.v1.CreatePostRequest")

    [violation], _ = find_violations(json_format.ParseDict({"title": title}, kind()))

    assert violation.rule == "string.pattern"
    assert violation.message == (
        "must be as described: 1 to 200 characters on one line, not only spaces."
    )


def test_every_field_with_a_pattern_is_described() -> None:
    assert DESCRIBED["postbus.posts.v1.CreatePostRequest.tags"]
    assert all(DESCRIBED.values())


def test_documents_have_no_raw_invisible_characters_in_patterns() -> None:
    for name in ("openapi.json", "asyncapi.json"):
        text = files("postbus").joinpath(name).read_text()
        assert "\\\\u202e" in text
        assert not {"\u202e", "\u2066", "\u200f"} & set(text)
