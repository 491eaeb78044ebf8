"""Binary bodies over REST: the same messages and rules as in JSON, for every kind of field."""

from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.kinds import canonical, examples, fill
from tests.contract.pipeline import Pipeline

many = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=25)
PARTS = ["Scalars", "Optionals", "Lists", "Maps", "Choices", "Nested", "Wrappers", "Names"]


def violations(problem: Any) -> list[tuple[str, str]]:
    assert problem["reason"] == "INVALID_FIELDS"
    return [(each["field"], each["rule"]) for each in problem["violations"]]


@pytest.mark.parametrize("part", PARTS)
@many
@given(data=st.data())
def test_message_of_every_kind_is_returned_unchanged_in_json_and_binary(
    pipeline: Pipeline, part: str, data: st.DataObject
) -> None:
    every, kind = pipeline.google("Every"), pipeline.google(part)
    drawn = data.draw(examples(kind.DESCRIPTOR, tame=True))
    message = fill(every(), {part.lower(): drawn})

    document = json_format.MessageToDict(message)
    status, response = pipeline.request_binary("POST", "/v1/kinds", message, "Every")
    status_of_json, document = pipeline.request("POST", "/v1/kinds", document)

    assert (status, status_of_json) == (200, 200), (response, document)
    assert canonical(response) == canonical(message)
    assert canonical(json_format.ParseDict(document, every())) == canonical(message)


def test_empty_message_is_an_empty_body(pipeline: Pipeline) -> None:
    every = pipeline.google("Every")

    assert pipeline.request_binary("POST", "/v1/kinds", every(), "Every") == (200, every())


def test_message_of_every_rule_is_refused_as_in_json(pipeline: Pipeline) -> None:
    check = pipeline.google("CheckRequest")(low=20, tags=["a", "a"], counts={"long": 0}, color=-1)

    status, problem = pipeline.request_binary("POST", "/v1/kinds:check", check, "CheckResponse")
    _, other = pipeline.request("POST", "/v1/kinds:check", json_format.MessageToDict(check))

    assert status == 422
    assert problem["violations"] == other["violations"]
    assert len(problem["violations"]) > 5


@pytest.mark.parametrize(
    ("data", "field"),
    [(b"\xfa\x7f\x01x", "value"), (b"\x0a\x03\xf8\x7f\x01", "value"), (b"\x08\x01", "value")],
    ids=["at the top", "in an inner message", "of another type"],
)
def test_field_that_is_not_in_the_contract_is_refused(
    pipeline: Pipeline, data: bytes, field: str
) -> None:
    status, problem = pipeline.request("BINARY POST", "/v1/kinds", data.hex())

    assert (status, violations(problem)) == (422, [(field, "unknown_field")])


def test_output_only_fields_are_ignored_at_every_depth(pipeline: Pipeline) -> None:
    """The handler fails if it gets one, see `stored`."""
    place = {"name": "a", "formatted": "x"}
    record = fill(
        pipeline.google("Record")(),
        {
            "id": "r1",
            "title": "t",
            "version": 9,
            "place": place,
            "places": [place],
            "by_name": {"k": place},
            "derived": place,
            "tags": ["x"],
        },
    )

    status, got = pipeline.request_binary("PUT", "/v1/records/r1", record, "Record")

    assert (status, got.id, got.title, got.version) == (200, "r1", "t", 7)


@pytest.mark.parametrize(
    ("given", "refused"), [("", False), ("r1", False), ("r2", True)], ids=["none", "same", "other"]
)
def test_field_of_the_path_may_be_repeated_in_the_body_but_not_differ(
    pipeline: Pipeline, given: str, refused: bool
) -> None:
    record = pipeline.google("Record")(id=given, title="t")

    status, got = pipeline.request_binary("PUT", "/v1/records/r1", record, "Record")

    if refused:
        assert (status, violations(got)) == (422, [("record.id", "duplicate")])
    else:
        assert (status, got.id) == (200, "r1")


def test_patch_names_its_fields_in_the_query(pipeline: Pipeline) -> None:
    thing = pipeline.google("Thing")(title="t", leaf={"name": "n"})
    url = "/v1/shelves/1/books/2"

    refused, problem = pipeline.request_binary("PATCH", url, thing, "ChangeRequest")
    status, changed = pipeline.request_binary(
        "PATCH", f"{url}?updateMask=title,note,leaf.name", thing, "ChangeRequest"
    )

    assert (refused, violations(problem)) == (422, [("updateMask", "required")])
    assert status == 200
    assert list(changed.update_mask.paths) == ["title", "note", "leaf.name"]
    assert (changed.thing.name, changed.thing.title) == ("shelves/1/books/2", "t")


def test_mask_with_an_unknown_field_is_refused(pipeline: Pipeline) -> None:
    url = "/v1/shelves/1/books/2?updateMask=nonsense"

    status, problem = pipeline.request_binary(
        "PATCH", url, pipeline.google("Thing")(), "ChangeRequest"
    )

    assert (status, violations(problem)) == (422, [("updateMask", "unknown_field")])


def test_request_without_a_body_gets_a_binary_response(pipeline: Pipeline) -> None:
    url = "/v1/kinds?scalars.int32=5&colors=COLOR_RED"

    status, got = pipeline.request_binary("GET", url, None, "QueryRequest")

    assert (status, got.scalars.int32, list(got.colors)) == (200, 5, [1])


def test_stream_is_not_binary(pipeline: Pipeline) -> None:
    status, problem = pipeline.request("BINARY GET", "/v1/kinds:count?to=2", None)

    assert (status, problem["reason"]) == (406, "NOT_ACCEPTABLE")
    assert "application/x-ndjson" in problem["detail"]


def test_raw_body_keeps_its_own_media_type(pipeline: Pipeline) -> None:
    """google.api.HttpBody: bytes of any type, which are no message."""
    for verb, url in (("POST", "/v1/files/a"), ("PUT", "/v1/mirror")):
        status, (media_type, content) = pipeline.request(f"BINARY {verb}", url, "ff00")

        assert (status, media_type, content) == (200, "application/protobuf", "ff00")


def test_response_without_fields_has_no_body(pipeline: Pipeline) -> None:
    status, (media_type, content) = pipeline.request("BINARY POST", "/v1/kinds:pingWithBody", "")

    assert (status, media_type, content) == (204, None, "")
