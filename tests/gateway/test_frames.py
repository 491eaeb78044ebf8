"""Frames of the WebSocket as JSON: equal to json_format's, with bounded errors."""

import json
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage

from gateway.event_subscriptions import CLIENT_EVENTS
from gateway.websocket_frames import (
    CallFrame,
    error_frame,
    event_prefix,
    frame_id,
    parse_frame,
    read_client_frame,
)
from postbus import reasons
from postbus.codec import POOL
from postbus.registry import METHODS
from shared.errors import FieldViolation, ServiceError
from shared.protojson import packed
from shared.wire import message_class

CREATE = "postbus.posts.v1.PostsService.CreatePost"
UPDATE = "postbus.posts.v1.PostsService.UpdatePost"
POST_ID = "018f3f6e-0000-7000-8000-000000000001"
WRITTEN = sorted({method.response_name for method in METHODS.values()} | CLIENT_EVENTS.keys())


def read_call(document: dict[str, Any]) -> CallFrame:
    """Return the frame of a call, read as a socket reads it."""
    frame = read_client_frame(document, json.dumps(document).encode())
    assert isinstance(frame, CallFrame)
    return frame


@pytest.mark.parametrize("name", WRITTEN)
def test_packed_message_equals_the_json_of_any(name: str) -> None:
    message: Any = message_class(name)()
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and not field.is_repeated:
            getattr(message, field.name).SetInParent()
    in_any = AnyMessage()
    in_any.Pack(message)

    by_google = json_format.MessageToDict(
        in_any, always_print_fields_with_no_presence=True, descriptor_pool=POOL
    )
    assert packed(message) == by_google


def test_error_frame_has_at_most_20_violations() -> None:
    violations = [FieldViolation(field=f"f{i}", rule="r", message="m") for i in range(1000)]
    error = ServiceError(reasons.INVALID_FIELDS, "No.", violations=violations)

    frame = json.loads(error_frame(error, id_="1", trace=""))

    assert [each["field"] for each in frame["error"]["violations"]] == [f"f{i}" for i in range(20)]


def test_echoed_id_is_truncated() -> None:
    assert frame_id({"id": "x" * 2**20}) == "x" * 64
    assert frame_id({"id": 5}) == frame_id([]) == ""


def test_event_frame_is_valid_json_for_any_subscription_id() -> None:
    frame = event_prefix('"\\\n') + b'{"eventId":"e"}' + b"}"

    assert json.loads(frame) == {"id": '"\\\n', "event": {"eventId": "e"}}


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"method": CREATE, "request": {"title": ""}}, "INVALID_FIELDS"),
        ({"method": CREATE, "request": {"@type": "x"}}, "WRONG_REQUEST_TYPE"),
        ({"method": CREATE, "request": {"title": "x"}, "operationId": "a b"}, "INVALID_FIELDS"),
        ({"method": CREATE, "request": {"title": "x"}, "operationId": "a" * 129}, "INVALID_FIELDS"),
        ({"method": CREATE, "request": {"title": "x"}, "traceparent": "0" * 56}, "INVALID_FIELDS"),
        ({"method": CREATE, "request": [1]}, "NOT_AN_OBJECT"),
        ({"method": "postbus.bus.v1.HealthService.Check"}, "UNKNOWN_METHOD"),
    ],
)
def test_invalid_call_is_refused_with_its_reason(call: dict[str, Any], reason: str) -> None:
    with pytest.raises(ServiceError) as refused:
        read_call({"id": "1", "call": call})

    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("method", "request_text", "field"),
    [
        (CREATE, '{"title": "a", "title": "b"}', "title"),
        (UPDATE, f'{{"id": "{POST_ID}", "updateMask": "none"}}', "updateMask"),
    ],
)
def test_violation_has_the_same_path_as_over_rest(
    method: str, request_text: str, field: str
) -> None:
    text = f'{{"id": "1", "call": {{"method": "{method}", "request": {request_text}}}}}'.encode()

    with pytest.raises(ServiceError) as refused:
        read_client_frame(parse_frame(text), text)

    assert [each.field for each in refused.value.violations] == [field]


def test_repeated_member_of_a_frame_is_refused() -> None:
    text = b'{"id": "1", "id": "1", "cancel": {"call": "1"}}'

    with pytest.raises(ServiceError) as refused:
        read_client_frame(parse_frame(text), text)

    assert [(each.field, each.rule) for each in refused.value.violations] == [("id", "duplicate")]


def test_type_of_a_request_is_optional() -> None:
    typed = {"@type": "type.googleapis.com/postbus.posts.v1.CreatePostRequest", "title": "x"}

    with_type = read_call({"id": "1", "call": {"method": CREATE, "request": typed}})
    without = read_call({"id": "1", "call": {"method": CREATE, "request": {"title": "x"}}})

    assert with_type.request == without.request
    assert typed["@type"]
