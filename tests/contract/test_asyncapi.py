"""The AsyncAPI document: valid for the official parser, complete, equal to frames and bus."""

import json
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from gateway.websocket_frames import read_client_frame
from postbus.registry import EVENTS, METHODS, Access
from shared.bus.amqp.message_properties import PROTOBUF
from tools.contracts.generate.document_validators import asyncapi_errors

DOCUMENT: dict[str, Any] = json.loads(files("postbus").joinpath("asyncapi.json").read_text())
CREATE = "postbus.posts.v1.PostsService.CreatePost"
UUID = "018f3f6e-0000-7000-8000-000000000001"


@pytest.mark.long
def test_official_parser_accepts_the_document_and_refuses_an_invalid_one() -> None:
    broken = DOCUMENT | {"operations": {"x": {"action": "nonsense"}}}

    assert asyncapi_errors(json.dumps(DOCUMENT)) == []
    assert any(error.startswith("operations/x") for error in asyncapi_errors(json.dumps(broken)))


def test_every_method_and_event_has_its_channel_on_the_bus() -> None:
    bound = {
        channel["address"].removesuffix(".{worker}"): channel["bindings"]["amqp"]["exchange"][
            "name"
        ]
        for channel in DOCUMENT["channels"].values()
        if "amqp" in channel.get("bindings", {})
    }

    methods = {
        name: "postbus.calls." + ("{worker}" if name.startswith("postbus.bus.") else method.worker)
        for name, method in METHODS.items()
    }
    events = {name: f"postbus.events.{name.split('.')[1]}" for name in EVENTS}
    assert bound == methods | events
    on_the_bus = [
        message
        for message in DOCUMENT["components"]["messages"].values()
        if "contentType" in message
    ]
    assert {message["contentType"] for message in on_the_bus} == {PROTOBUF}
    assert len(on_the_bus) == 2 * len(METHODS) + len(EVENTS)


def test_websocket_has_exactly_the_methods_that_clients_may_call() -> None:
    public = {name for name, method in METHODS.items() if method.access is not Access.INTERNAL}
    messages = DOCUMENT["channels"]["websocket"]["messages"]

    called = {name.removeprefix("call.") for name in messages if name.startswith("call.")}
    delivered = {name.removeprefix("event.") for name in messages if name.startswith("event.")}

    assert called == public
    assert delivered == {
        name for name, event in EVENTS.items() if event.access is not Access.INTERNAL
    }
    assert "postbus.users.v1.SessionsRevoked" in EVENTS.keys() - delivered


def test_event_for_one_user_names_the_user_field_at_the_websocket() -> None:
    messages = DOCUMENT["components"]["messages"]

    description = messages["event.postbus.posts.v1.NotificationCreated"]["description"]

    assert description == "Only the user with the id `userId` receives it."
    assert "description" not in messages["event.postbus.posts.v1.PostCreated"]


def payload_of(message: str) -> Draft202012Validator:
    schema = DOCUMENT["components"]["messages"][message]["payload"]
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


@pytest.mark.parametrize(
    ("message", "frame"),
    [
        ("authenticate", {"id": "1", "authenticate": {"accessToken": "x"}}),
        ("subscribe", {"id": "1", "subscribe": {"types": ["postbus.posts.v1.PostCreated"]}}),
        ("unsubscribe", {"id": "1", "unsubscribe": {"subscription": "1"}}),
        (
            f"call.{CREATE}",
            {"id": "1", "call": {"method": CREATE, "request": {"title": "x"}, "timeoutMs": 100}},
        ),
    ],
)
def test_documented_frame_is_accepted_by_the_gateway(message: str, frame: dict[str, Any]) -> None:
    assert payload_of(message).is_valid(frame)
    assert read_client_frame(frame, json.dumps(frame).encode()).id == "1"


@pytest.mark.parametrize(
    ("message", "frame"),
    [
        ("authenticate", {"id": "1", "authenticate": {"accessToken": ""}}),
        ("subscribe", {"id": "", "subscribe": {"types": ["x"]}}),
        ("subscribe", {"id": "1", "subscribe": {"types": []}}),
        (f"call.{CREATE}", {"id": "1", "call": {"method": CREATE, "request": {"title": ""}}}),
        (f"call.{CREATE}", {"id": "1", "call": {"method": "another", "request": {"title": "x"}}}),
    ],
)
def test_frame_that_the_gateway_refuses_is_not_documented(
    message: str, frame: dict[str, Any]
) -> None:
    assert not payload_of(message).is_valid(frame)


def test_event_frame_of_the_gateway_matches_its_schema() -> None:
    frame = {
        "id": "1",
        "event": {
            "eventId": UUID,
            "subject": UUID,
            "time": "2026-01-01T00:00:00.000001Z",
            "data": {
                "@type": "type.googleapis.com/postbus.posts.v1.PostDeleted",
                "postId": UUID,
                "authorId": UUID,
                "version": "7",
            },
        },
    }

    assert payload_of("event.postbus.posts.v1.PostDeleted").is_valid(frame)
    assert not payload_of("event.postbus.posts.v1.PostCreated").is_valid(frame)


def test_methods_and_the_error_frame_list_their_reasons() -> None:
    update = "postbus.posts.v1.PostsService.UpdatePost"
    error = DOCUMENT["components"]["messages"]["error"]["description"]

    for about in (
        DOCUMENT["channels"][update]["description"],
        DOCUMENT["components"]["messages"][f"call.{update}"]["description"],
    ):
        assert (
            "Reasons of its errors: `POST_NOT_FOUND`, `NOT_THE_AUTHOR`, `VERSION_MISMATCH`" in about
        )
    assert "Reasons of the errors of every method: `ALREADY_DONE`, " in error
    assert "Reasons of the errors of frames and connections: `ALREADY_SUBSCRIBED`, " in error
