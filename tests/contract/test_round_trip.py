"""A client reads a resource, changes a member and sends all of it back (AIP-203)."""

from typing import Any

import orjson
import pytest
from google.protobuf.message import Message

from gateway.transcoding import Transcoder
from postbus.registry import METHODS, HttpRule, Method
from shared.errors import ServiceError
from shared.protojson import write_message
from shared.wire import message_class

ID = "018f3f6e-0000-7000-8000-000000000001"
TIME = {"seconds": 1_700_000_000}
RESOURCES: dict[str, dict[str, Any]] = {
    "postbus.posts.v1.PostsService.UpdatePost": {
        "id": ID,
        "author": {"id": ID, "username": "ada"},
        "title": "A title",
        "body": "A body",
        "summary": "A summary",
        "tags": ["a"],
        "created_at": TIME,
        "updated_at": TIME,
        "published_at": TIME,
        "version": 3,
        "slug": "a-title",
        "status": 1,
        "like_count": 4,
        "comment_count": 5,
        "liked": True,
    },
    "postbus.posts.v1.CommentsService.UpdateComment": {
        "id": ID,
        "post_id": ID,
        "author": {"id": ID, "username": "ada"},
        "body": "A body",
        "created_at": TIME,
        "updated_at": TIME,
        "version": 3,
    },
    "postbus.users.v1.UsersService.UpdateMe": {
        "id": ID,
        "username": "ada",
        "email": "ada@example.com",
        "display_name": "Ada",
        "bio": "A bio",
        "image_url": "https://example.com/ada.png",
        "created_at": TIME,
        "updated_at": TIME,
        "follower_count": 4,
        "following_count": 5,
        "version": 3,
    },
}
WRITABLE = {
    "postbus.posts.v1.PostsService.UpdatePost": {"title", "body", "summary", "tags"},
    "postbus.posts.v1.CommentsService.UpdateComment": {"body"},
    "postbus.users.v1.UsersService.UpdateMe": {
        "username",
        "email",
        "display_name",
        "bio",
        "image_url",
    },
}
UPDATES = [
    (method, rule) for method in METHODS.values() for rule in method.http if rule.verb == "PATCH"
]
UPDATE_POST = next(each for each in UPDATES if each[0].name.endswith(".UpdatePost"))


def resource(method: Method, rule: HttpRule) -> dict[str, Any]:
    """Return the resource as in a response."""
    response: Any = message_class(method.response_name)
    field = response.DESCRIPTOR.fields_by_name[rule.response_body]
    values = RESOURCES[method.name]
    missing = {each.name for each in field.message_type.fields} - values.keys()
    assert not missing, "the resource has a new member: add it here"
    document: dict[str, Any] = write_message(response(**{field.name: values}))[rule.response_body]
    return document


def send(method: Method, rule: HttpRule, body: dict[str, Any], id_: str = ID) -> Any:
    parameters = {path: id_ for path, _ in rule.variables}
    message: Message = Transcoder(method, rule).read(parameters, [], orjson.dumps(body))
    return message


@pytest.mark.parametrize(("method", "rule"), UPDATES, ids=lambda each: getattr(each, "name", ""))
def test_resource_is_accepted_unchanged(method: Method, rule: HttpRule) -> None:
    document = resource(method, rule)

    message = send(method, rule, document)

    if "update_mask" in message.DESCRIPTOR.fields_by_name:
        assert set(message.update_mask.paths) == WRITABLE[method.name]


@pytest.mark.parametrize(("method", "rule"), UPDATES, ids=lambda each: getattr(each, "name", ""))
def test_each_writable_member_of_a_read_resource_can_be_changed(
    method: Method, rule: HttpRule
) -> None:
    for name in ("body", "bio"):
        if name in WRITABLE[method.name]:
            message = send(method, rule, resource(method, rule) | {name: "Changed"})
            assert getattr(message, name) == "Changed"


def test_another_resource_than_the_one_in_the_path_is_refused() -> None:
    method, rule = UPDATE_POST
    body = {"id": ID.replace("1", "2"), "title": ""}

    with pytest.raises(ServiceError) as raised:
        send(method, rule, body)

    assert [(each.field, each.rule) for each in raised.value.violations] == [
        ("id", "duplicate"),
        ("title", "string.min_len"),
    ]


def test_member_that_no_response_has_is_refused() -> None:
    method, rule = UPDATE_POST

    with pytest.raises(ServiceError) as raised:
        send(method, rule, {"title": "x", "versions": 1})

    assert [each.field for each in raised.value.violations] == ["versions"]


@pytest.mark.parametrize("mask", ["nope", "title,nope", "title.nope", "updateMask"])
def test_mask_names_fields_of_the_resource(mask: str) -> None:
    method, rule = UPDATE_POST

    with pytest.raises(ServiceError) as raised:
        send(method, rule, {"title": "x", "updateMask": mask})

    assert [(each.field, each.rule) for each in raised.value.violations] == [
        ("updateMask", "unknown_field")
    ]
    assert send(method, rule, {"title": "x", "updateMask": "*"}).update_mask.paths == ["*"]
