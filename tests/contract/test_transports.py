"""REST and the WebSocket read the same JSON: equal documents get equal results or errors."""

import json
from typing import Any

import pytest

from tests.contract.pipeline import Pipeline

ACCEPTED = [
    '{"scalars": {"int32": 5, "int64": "5", "uint64": 5, "double": 1, "bool": true}}',
    '{"scalars": {"int32": "5", "int64": "1e2", "uint64": 5.0, "double": "1.5", "bool": null}}',
    '{"scalars": {"float": 3.4028235e+38, "double": "NaN", "fixed32": "4294967295"}}',
    '{"scalars": {"bytes": "-_8", "string": "\\ud83d\\ude00"}}',
    '{"scalars": {"color": 1}, "lists": {"colors": [99, "COLOR_RED", "1", -1.0]}}',
    '{"scalars": null, "lists": {"strings": null}, "maps": {"strings": null}}',
    '{"choices": {"text": "a", "number": null}}',
    '{"names": {"with_2_digits": "x", "camelCase": "y"}, "well_known": {"time": null}}',
    '{"wellKnown": {"time": "2026-02-28T23:59:59.123456000+23:59", "duration": "-0.5s"}}',
    '{"wellKnown": {"mask": "fooBar,baz.qux", "value": null, "list": [null, 1, {"a": []}]}}',
    '{"wellKnown": {"struct": {"a": {"b": [1.5, "x", false, null]}}, "empty": {}}}',
    '{"wrappers": {"int64": "7", "bool": false, "string": "", "bytes": "AA"}}',
    '{"maps": {"leaves": {"true": {}}, "int64s": {"-1": "1"}, "colors": {"1": 99}}}',
    "{}",
]
MALFORMED = [
    "{",
    '{"scalars": {"double": NaN}}',
]
REFUSED: list[tuple[str, list[tuple[str, str]]]] = [
    ('{"scalars": 5}', [("scalars", "type")]),
    ('{"scalars": {"int32": true}}', [("scalars.int32", "type")]),
    ('{"scalars": {"color": true}}', [("scalars.color", "type")]),
    ('{"scalars": {"color": "RED"}}', [("scalars.color", "unknown_value")]),
    ('{"scalars": {"int32": 2147483648}}', [("scalars.int32", "range")]),
    ('{"scalars": {"double": 1e400}}', [("scalars.double", "range")]),
    ('{"scalars": {"string": "\\ud800"}}', [("scalars.string", "format")]),
    ('{"scalars": {"int64": " 1"}}', [("scalars.int64", "format")]),
    ('{"scalars": {"float": 3.5e38}}', [("scalars.float", "range")]),
    ('{"scalars": {"bytes": "*"}}', [("scalars.bytes", "format")]),
    ('{"scalars": {"int32": 1, "int32": 1}}', [("scalars.int32", "duplicate")]),
    ('{"maps": {"strings": {"a": "", "a": ""}}}', [("maps.strings.a", "duplicate")]),
    ('{"wellKnown": {"struct": {"a": 1, "a": 2}}}', [("wellKnown.struct.a", "duplicate")]),
    ('{"maps": {"bools": {"1": true, "1.0": true}}}', [("maps.bools[1.0]", "duplicate")]),
    ('{"wellKnown": {}, "well_known": null}', [("wellKnown", "duplicate")]),
    ('{"choices": {"text": "", "number": "1"}}', [("choices", "oneof")]),
    (
        '{"lists": {"strings": [null, "a", 1]}}',
        [("lists.strings[0]", "type"), ("lists.strings[2]", "type")],
    ),
    ('{"wellKnown": {"time": "2020-1-1T00:00:00Z"}}', [("wellKnown.time", "format")]),
    ('{"wellKnown": {"time": "2020-02-30T00:00:00Z"}}', [("wellKnown.time", "range")]),
    ('{"wellKnown": {"time": "0001-01-01T00:00:00+00:01"}}', [("wellKnown.time", "range")]),
    ('{"wellKnown": {"duration": "315576000001s"}}', [("wellKnown.duration", "range")]),
    ('{"wellKnown": {"mask": "foo_bar"}}', [("wellKnown.mask", "format")]),
    (
        '{"nonsense": 1, "scalars": {"nonsense": 2}}',
        [("nonsense", "unknown_field"), ("scalars.nonsense", "unknown_field")],
    ),
]


def over_rest(pipeline: Pipeline, document: str) -> tuple[str, set[tuple[str, str]], Any]:
    """Return the reason and the violations of the problem, and the JSON of the response."""
    _, response = pipeline.request("POST", "/v1/kinds", document)
    return _outcome(response, response)


def over_websocket(pipeline: Pipeline, document: str) -> tuple[str, set[tuple[str, str]], Any]:
    answer = pipeline.call("Echo", f'{{"value": {document}}}')
    if "error" in answer:
        return _outcome(answer["error"], answer["error"])
    response = answer["result"]["response"]
    assert response.pop("@type") == "type.googleapis.com/postbus.kinds.v1.EchoResponse"
    return _outcome(response, response["value"])


def _outcome(answer: Any, value: Any) -> tuple[str, set[tuple[str, str]], Any]:
    violations = answer.get("violations", [])
    return (
        answer.get("reason", ""),
        {(each["field"].removeprefix("value."), each["rule"]) for each in violations},
        None if "reason" in answer else value,
    )


@pytest.mark.parametrize("document", ACCEPTED)
def test_document_is_accepted_over_both_transports(pipeline: Pipeline, document: str) -> None:
    outcome = over_rest(pipeline, document)

    assert outcome[:2] == ("", set())
    assert over_websocket(pipeline, document) == outcome


@pytest.mark.parametrize("document", MALFORMED)
def test_text_that_is_not_json_is_malformed_over_both_transports(
    pipeline: Pipeline, document: str
) -> None:
    assert over_rest(pipeline, document)[0] == "MALFORMED_JSON"
    assert over_websocket(pipeline, document)[0] == "MALFORMED_JSON"


@pytest.mark.parametrize(("document", "violations"), REFUSED)
def test_document_is_refused_equally_over_both_transports(
    pipeline: Pipeline, document: str, violations: list[tuple[str, str]]
) -> None:
    expected = ("INVALID_FIELDS", set(violations), None)

    assert over_rest(pipeline, document) == expected
    assert over_websocket(pipeline, document) == expected


def test_violations_have_the_paths_of_the_request_over_both_transports(pipeline: Pipeline) -> None:
    document = {"low": "x", "high": 1.5, "tags": [1]}

    _, problem = pipeline.request("POST", "/v1/kinds:check", document)
    error = pipeline.call("Check", json.dumps(document))["error"]

    assert problem["violations"] == error["violations"]
    assert [each["field"] for each in error["violations"]] == ["low", "high", "tags[0]"]


@pytest.mark.parametrize("request_", ["5", '"x"', "[]"])
def test_request_other_than_an_object_is_refused_over_both_transports(
    pipeline: Pipeline, request_: str
) -> None:
    status, problem = pipeline.request("POST", "/v1/kinds:check", request_)

    assert (status, problem["reason"]) == (400, "NOT_AN_OBJECT")
    assert pipeline.call("Check", request_)["error"]["reason"] == "NOT_AN_OBJECT"


def test_null_as_a_body_is_refused(pipeline: Pipeline) -> None:
    status, problem = pipeline.request("POST", "/v1/kinds", "null")

    assert status == 422
    assert [(each["field"], each["rule"]) for each in problem["violations"]] == [("value", "type")]


def test_response_can_be_sent_back_unchanged(pipeline: Pipeline) -> None:
    """The response has an unknown enum number and the largest float."""
    sent = {"scalars": {"color": 99, "float": 3.4028234663852886e38}, "lists": {"colors": [99]}}
    _, first = pipeline.request("POST", "/v1/kinds", sent)

    status, second = pipeline.request("POST", "/v1/kinds", first)

    assert (status, second) == (200, first)
