"""openapi.json as generators of clients and people read it."""

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from gateway.transcoding import Transcoder
from postbus.reasons import REASONS
from postbus.registry import METHODS, Access, HttpRule
from postbus_runtime.reasons import Scope

DOCUMENTS = {
    name: json.loads(files("postbus").joinpath(f"{name}.json").read_text())
    for name in ("openapi", "asyncapi")
}
DOCUMENT: dict[str, Any] = DOCUMENTS["openapi"]
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
OPERATIONS = {
    operation["operationId"]: operation
    for path in DOCUMENT["paths"].values()
    for operation in path.values()
}


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield each object of a document."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, dict | list):
            yield from parts(each)


def success(operation: dict[str, Any]) -> dict[str, Any]:
    [status] = [status for status in operation["responses"] if status.startswith("2")]
    found: dict[str, Any] = operation["responses"][status]
    return found


def media_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the media types that are JSON."""
    return [
        media
        for kind, media in content.get("content", {}).items()
        if kind != "application/protobuf"
    ]


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document_is_ascii_and_has_no_invisible_character(name: str) -> None:
    text = files("postbus").joinpath(f"{name}.json").read_text()

    assert text.isascii()
    patterns = [part["pattern"] for part in parts(DOCUMENTS[name]) if "pattern" in part]
    assert [each for each in patterns if isinstance(each, str) and not each.isascii()] == []
    strings = [each for part in parts(DOCUMENTS[name]) for each in part.values()]
    assert [
        text
        for text in strings
        if isinstance(text, str) and not text.replace("\n", "").isprintable()
    ] == []


def test_license_has_the_identifier_that_generators_ask_for() -> None:
    assert DOCUMENT["info"]["license"] == {"name": "MIT", "identifier": "MIT"}


def test_enums_are_shared_components_with_the_meaning_of_each_value() -> None:
    status = SCHEMAS["PostStatus"]

    assert status["enum"] == [
        "POST_STATUS_UNSPECIFIED",
        "POST_STATUS_PUBLISHED",
        "POST_STATUS_DRAFT",
    ]
    assert "- `POST_STATUS_DRAFT`: Only the author can read the post." in status["description"]
    inline = [
        part["enum"]
        for part in parts([DOCUMENT["paths"], SCHEMAS])
        if any(str(each).startswith("POST_STATUS") for each in part.get("enum", ()))
    ]
    assert inline == [status["enum"]]


def test_request_bodies_are_components() -> None:
    bodies = {
        name: media["schema"]
        for name, operation in OPERATIONS.items()
        for media in media_of(operation.get("requestBody", {}))
    }

    assert bodies["CreatePost"] == {"$ref": "#/components/schemas/CreatePostRequest"}
    assert bodies["UpdatePost"] == {"$ref": "#/components/schemas/UpdatePostBody"}
    assert [name for name, schema in bodies.items() if schema.keys() != {"$ref"}] == []


def test_ids_have_one_format_in_requests_and_responses() -> None:
    for name in ("Post", "Author", "Comment", "Notification", "User", "Profile", "Session"):
        assert SCHEMAS[name]["properties"]["id"]["format"] == "uuid", name
    [path_id] = [each for each in OPERATIONS["GetComment"]["parameters"] if each["in"] == "path"]
    assert path_id["schema"]["format"] == "uuid"


def test_members_that_are_always_sent_are_required() -> None:
    assert {"author", "createdAt", "updatedAt"} <= set(SCHEMAS["Post"]["required"])
    assert "publishedAt" not in SCHEMAS["Post"]["required"]
    assert "total" not in SCHEMAS["ListPostsResponse"]["required"]


def test_only_methods_that_use_a_token_ask_for_one() -> None:
    for name in ("SignUp", "LogIn", "RefreshSession"):
        assert OPERATIONS[name]["security"] == []
    assert OPERATIONS["GetPost"]["security"] == [{}, {"bearer": []}]
    for method in METHODS.values():
        if method.access is Access.USER and method.http:
            name = method.name.rpartition(".")[2]
            assert OPERATIONS[name]["security"] == [{"bearer": []}]


def test_header_tells_what_a_repeated_request_gets() -> None:
    texts = {
        name: parameter["description"]
        for name, operation in OPERATIONS.items()
        for parameter in operation["parameters"]
        if parameter["name"] == "Idempotency-Key"
    }

    assert {name for name, text in texts.items() if "ALREADY_DONE" in text} == {
        "LogIn",
        "RefreshSession",
    }
    assert "gets the stored response" in texts["CreatePost"]
    assert "gets the stored response" not in texts["LogIn"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_has_an_example_that_its_schema_accepts(name: str) -> None:
    operation = OPERATIONS[name]
    found = media_of(operation.get("requestBody", {})) + media_of(success(operation))

    for media in found:
        validator(media["schema"]).validate(media["example"])
    for parameter in operation["parameters"]:
        if parameter["in"] == "path":
            validator(parameter["schema"]).validate(parameter["example"])


def rules() -> Iterator[tuple[str, HttpRule]]:
    for name, method in METHODS.items():
        if method.access is not Access.INTERNAL:
            yield from ((name, rule) for rule in method.http)


@pytest.mark.parametrize(("name", "rule"), list(rules()))
def test_example_of_a_request_is_accepted_by_the_gateway(name: str, rule: HttpRule) -> None:
    operation = DOCUMENT["paths"][rule.path][rule.verb.lower()]
    path = {each["name"]: each["example"] for each in operation["parameters"] if "example" in each}
    media = media_of(operation.get("requestBody", {}))
    body = json.dumps(media[0]["example"]).encode() if media else b""

    request = Transcoder(METHODS[name], rule).read(path, [], body)

    assert request.DESCRIPTOR.full_name == METHODS[name].request_name


@pytest.mark.parametrize("name", METHODS)
def test_operations_list_the_reasons_of_their_method_by_status(name: str) -> None:
    method = METHODS[name]
    for rule in method.http if method.access is not Access.INTERNAL else ():
        responses = DOCUMENT["paths"][rule.path][rule.verb.lower()]["responses"]
        for reason in sorted(method.reasons):
            response = responses[str(REASONS[reason].http_status)]
            assert reason in response["x-reasons"]
            assert f"- `{reason}`: " in response["description"]


def test_shared_responses_list_the_reasons_of_every_method() -> None:
    listed = [
        reason
        for response in DOCUMENT["components"]["responses"].values()
        for reason in response["x-reasons"]
    ]

    assert len(listed) == len(set(listed))
    assert {name for name, each in REASONS.items() if each.scope is Scope.CALL} <= set(listed)
    assert "BATCH_TOO_LARGE" not in listed
    assert "UNKNOWN_CALL" not in listed
