"""A new .proto from the generator to REST responses, with every kind of field and rule."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from tests.contract.pipeline import Pipeline


def test_document_of_the_new_service_is_valid(pipeline: Pipeline) -> None:
    document = json.loads((pipeline.package / "openapi.json").read_text())

    validate(document)
    assert {"/v1/kinds", "/v1/kinds/{scalars.string}:query", "/v1/kinds:check"} <= set(
        document["paths"]
    )
    assert "/v1/shelves/{shelves}/books/{books}" in document["paths"]


EDGES: list[tuple[str, Any, Any]] = [
    ("scalars.int64", "9223372036854775807", ...),
    ("scalars.int64", -9223372036854775808, "-9223372036854775808"),
    ("scalars.uint64", "18446744073709551615", ...),
    ("scalars.int32", 1.0, 1),
    ("scalars.int32", 1e3, 1000),
    ("scalars.int32", "5", 5),
    ("scalars.int32", "1e2", 100),
    ("scalars.int32", "-1.0", -1),
    ("scalars.int32", None, 0),
    ("scalars.string", None, ""),
    ("scalars.color", 1, "COLOR_RED"),
    ("scalars.color", 1.0, "COLOR_RED"),
    ("scalars.color", "1", "COLOR_RED"),
    ("scalars.color", 99, ...),
    ("scalars.double", "1.5", 1.5),
    ("scalars.float", 3.4028235e38, ...),
    ("lists.strings", None, []),
    ("lists.colors", [99, "COLOR_RED"], ...),
    ("maps.colors", {"1": 99}, ...),
    ("wrappers.int32", "5", 5),
    ("scalars.double", "NaN", ...),
    ("scalars.double", "-Infinity", ...),
    ("scalars.double", 1.7976931348623157e308, ...),
    ("scalars.double", 5e-324, ...),
    ("scalars.float", 3.4028233e38, ...),
    ("scalars.bytes", "-_8=", "+/8="),
    ("scalars.bytes", "+/8", "+/8="),
    ("scalars.color", "COLOR_COLD", ...),
    ("wellKnown.time", "2026-02-28T23:59:59.123456Z", ...),
    ("wellKnown.time", "2026-03-01T01:00:00+01:00", "2026-03-01T00:00:00Z"),
    ("wellKnown.time", "0001-01-01T00:00:00Z", ...),
    ("wellKnown.time", "9999-12-31T23:59:59.999999Z", ...),
    ("wellKnown.duration", "-1.500s", ...),
    ("wellKnown.mask", "fooBar,baz.quxQuux", ...),
    ("wellKnown.struct", {"a": [1, None, {"b": "c"}], "d": True}, ...),
    ("wellKnown.value", [1, "x", None], ...),
    ("wellKnown.list", [{"a": []}], ...),
    ("wellKnown.empty", {}, ...),
    ("optionals.string", "", ...),
    ("optionals.int32", 0, ...),
    ("wrappers.bool", False, ...),
    ("choices.nothing", {}, ...),
    ("maps.leaves", {"true": {"name": "x", "number": "0"}}, ...),
    ("names.camelCase", "x", ...),
    ("names.from", "x", ...),
]


@pytest.mark.parametrize(("path", "sent", "expected"), EDGES)
def test_edge_case_of_proto3_json_is_returned_in_canonical_form(
    pipeline: Pipeline, path: str, sent: Any, expected: Any
) -> None:
    part, field = path.split(".")

    status, response = pipeline.request("POST", "/v1/kinds", {part: {field: sent}})

    assert status == 200, response
    assert response[part][field] == (sent if expected is ... else expected)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("scalars.int64", "9223372036854775808"),
        ("scalars.int64", "1.5"),
        ("scalars.int64", "007x"),
        ("scalars.uint64", -1),
        ("scalars.int32", 2147483648),
        ("scalars.int32", True),
        ("scalars.int32", 1.5),
        ("scalars.color", True),
        ("scalars.color", 2**31),
        ("scalars.color", "NoneType"),
        ("scalars.float", 3.5e38),
        ("scalars.float", 3.4028235677973366e38),
        ("wellKnown.time", "2020-1-1T00:00:00Z"),
        ("wellKnown.time", "2020-01-01T00:00:00+24:00"),
        ("wellKnown.time", "2020-01-01T00:00:60Z"),
        ("wellKnown.duration", "1 s"),
        ("wellKnown.duration", "+1s"),
        ("wellKnown.duration", "1.s"),
        ("scalars.double", "nan"),
        ("scalars.bool", "true"),
        ("scalars.bool", 1),
        ("scalars.string", 5),
        ("scalars.bytes", "a"),
        ("scalars.bytes", "*"),
        ("scalars.color", "RED"),
        ("wellKnown.time", "2026-02-30T00:00:00Z"),
        ("wellKnown.time", "2026-02-28"),
        ("wellKnown.time", "10000-01-01T00:00:00Z"),
        ("wellKnown.duration", "1.5"),
        ("wellKnown.duration", "999999999999s"),
        ("wellKnown.mask", "foo_bar"),
        ("lists.strings", "x"),
        ("lists.strings", [None]),
        ("maps.int64s", {"x": "1"}),
        ("maps.leaves", {"yes": {}}),
        ("scalars.nonsense", 1),
    ],
)
def test_invalid_proto3_json_is_refused_with_its_path(
    pipeline: Pipeline, path: str, sent: Any
) -> None:
    part, field = path.split(".")

    status, response = pipeline.request("POST", "/v1/kinds", {part: {field: sent}})

    assert (status, response["reason"]) == (422, "INVALID_FIELDS"), response
    assert all(each["field"].startswith(f"value.{path}") for each in response["violations"]), (
        response
    )


def test_two_members_of_a_oneof_are_refused(pipeline: Pipeline) -> None:
    status, response = pipeline.request(
        "POST", "/v1/kinds", {"choices": {"text": "", "number": "1"}}
    )

    assert status == 422
    [violation] = response["violations"]
    assert violation["field"] == "value.choices"
    assert violation["message"] == "only one of choice may be set: text or number"


def test_query_takes_repeated_nested_and_typed_parameters(pipeline: Pipeline) -> None:
    query = (
        "scalars.int32=-5&scalars.bool=true&scalars.double=1e3&colors=COLOR_RED&colors=COLOR_FAR"
        "&numbers=1&numbers=-9223372036854775808&since=2026-01-01T00:00:00Z&sure=false"
        "&wrappers.int64=7&wrappers.bool=true&scalars.float=NaN"
    )

    status, response = pipeline.request("GET", f"/v1/kinds?{query}")

    assert status == 200, response["violations"]
    assert (response["scalars"]["int32"], response["scalars"]["bool"]) == (-5, True)
    assert (response["scalars"]["double"], response["scalars"]["float"]) == (1000.0, "NaN")
    assert response["colors"] == ["COLOR_RED", "COLOR_FAR"]
    assert response["numbers"] == ["1", "-9223372036854775808"]
    assert (response["since"], response["sure"]) == ("2026-01-01T00:00:00Z", False)
    assert response["wrappers"] == {"int64": "7", "bool": True}


def test_query_takes_numbers_as_proto_json_does(pipeline: Pipeline) -> None:
    query = "scalars.int32=1e1&scalars.int64=5.0&colors=1&colors=99"

    status, response = pipeline.request("GET", f"/v1/kinds?{query}")

    assert status == 200, response
    assert (response["scalars"]["int32"], response["scalars"]["int64"]) == (10, "5")
    assert response["colors"] == ["COLOR_RED", 99]


def test_violations_of_parameters_and_body_are_reported_together(pipeline: Pipeline) -> None:
    url = "/v1/shelves/1/books/2?nonsense=1&updateMask=nope&updateMask=title&thing.title=x"

    status, response = pipeline.request("PATCH", url, {"name": "shelves/9/books/9", "title": "y"})

    assert (status, response["reason"]) == (422, "INVALID_FIELDS")
    assert [(each["field"], each["rule"]) for each in response["violations"]] == [
        ("thing.name", "duplicate"),
        ("nonsense", "unknown_field"),
        ("updateMask", "duplicate"),
        ("thing.title", "duplicate"),
        ("updateMask", "unknown_field"),
    ]


def test_body_may_repeat_the_path(pipeline: Pipeline) -> None:
    body = {"name": "shelves/1/books/2", "title": "y"}

    status, response = pipeline.request("PATCH", "/v1/shelves/1/books/2", body)

    assert (status, response["updateMask"]) == (200, "title")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("scalars.int32=x", "scalars.int32"),
        ("scalars.int32=1&scalars.int32=2", "scalars.int32"),
        ("scalars.nonsense=1", "scalars.nonsense"),
        ("nonsense=1", "nonsense"),
        ("scalars=1", "scalars"),
        ("colors=RED", "colors[0]"),
    ],
)
def test_wrong_query_is_refused_with_its_parameter(
    pipeline: Pipeline, query: str, field: str
) -> None:
    status, response = pipeline.request("GET", f"/v1/kinds?{query}")

    assert status == 422
    assert [each["field"] for each in response["violations"]] == [field]


def test_additional_binding_and_custom_verb_set_a_nested_field(pipeline: Pipeline) -> None:
    status, response = pipeline.request("GET", "/v1/kinds/a%2Fb%20c:query?scalars.int32=1")

    assert status == 200, response
    assert (response["scalars"]["string"], response["scalars"]["int32"]) == ("a/b c", 1)
    assert pipeline.request("GET", "/v1/kinds/x:query?scalars.string=y")[0] == 422


@pytest.mark.parametrize(
    ("body", "mask"),
    [
        ({"title": "x"}, "title"),
        ({"title": ""}, "title"),
        ({"note": None}, "note"),
        ({"note": "", "tags": []}, "note,tags"),
        ({"leaf": {"name": "x"}}, "leaf.name"),
        ({"leaf": None}, "leaf"),
        ({"leaf": {}}, "leaf"),
        ({"labels": {"a": "b"}}, "labels"),
        ({}, None),
    ],
)
def test_update_mask_has_the_members_that_were_sent(
    pipeline: Pipeline, body: dict[str, Any], mask: str | None
) -> None:
    status, response = pipeline.request("PATCH", "/v1/shelves/1/books/2", body)

    assert status == 200, response
    assert response["thing"]["name"] == "shelves/1/books/2"
    assert response.get("updateMask") == mask


def test_update_mask_of_the_client_is_kept(pipeline: Pipeline) -> None:
    url = "/v1/shelves/1/books/2?updateMask=title,leaf.name"

    assert pipeline.request("PATCH", url, {"title": "x"})[1]["updateMask"] == "title,leaf.name"
    assert (
        pipeline.request("PATCH", url.replace("title", "*"), {})[1]["updateMask"] == "*,leaf.name"
    )
    assert pipeline.request("PATCH", "/v1/shelves/1/magazines/2", {})[0] == 404


GOOD = {"low": 1, "name": "x", "email": "a@b", "leaf": {}}
DIVIDE_BY_ZERO = {"words": ["a"]}


def test_rule_that_fails_at_run_time_is_a_violation(pipeline: Pipeline) -> None:
    status, response = pipeline.request("POST", "/v1/kinds:divide", DIVIDE_BY_ZERO)

    assert (status, response["reason"], response["outcome"]) == (422, "INVALID_FIELDS", "NO_EFFECT")
    assert [each["rule"] for each in response["violations"]] == ["divisible"]
    assert pipeline.call("Divide", json.dumps(DIVIDE_BY_ZERO))["error"]["violations"] == [
        {"field": "", "rule": "divisible", "message": "the rule cannot be applied to these values"}
    ]


@pytest.mark.parametrize(("words", "reported"), [(19, 19), (250, 20), (251, 1), (1_000, 1)])
def test_violations_of_many_elements_are_limited(
    pipeline: Pipeline, words: int, reported: int
) -> None:
    _, response = pipeline.request("POST", "/v1/kinds:divide", {"number": 1, "words": [""] * words})

    assert response["violations"][0]["field"] == "words[0]"
    assert (len(response["violations"]), response["moreViolations"]) == (reported, words > 20)


RULES: list[tuple[dict[str, Any], set[tuple[str, str]]]] = [
    ({}, set()),
    ({"high": "1000000000000", "ratio": 1, "code": "ABC", "tags": ["aa", "bb"]}, set()),
    ({"counts": {"abc": 1}, "data": "AAAAAA==", "color": "COLOR_FAR", "nick": None}, set()),
    ({"code": "", "host": "", "at": "2099-12-31T23:59:59Z", "size": "1"}, set()),
    ({"size": "18446744073709551615", "host": "example.com"}, set()),
    ({"low": -6}, {("low", "int32.gte_lt")}),
    ({"low": 10}, {("low", "int32.gte_lt")}),
    ({"high": "1000000000001"}, {("high", "int64.lte")}),
    ({"high": 1000000000001}, {("high", "int64.lte")}),
    ({"ratio": 1.5}, {("ratio", "double.gte_lte")}),
    ({"ratio": "NaN"}, {("ratio", "double.gte_lte")}),
    ({"code": "abc"}, {("code", "string.pattern")}),
    ({"code": "ABCD"}, {("code", "string.pattern")}),
    ({"name": ""}, {("name", "string.min_len")}),
    ({"name": "123456"}, {("name", "string.max_len")}),
    ({"tags": ["aa", "aa"]}, {("tags", "repeated.unique")}),
    ({"tags": ["aa", "b"]}, {("tags[1]", "string.min_len")}),
    ({"tags": ["aa", "bb", "cc"]}, {("tags", "repeated.max_items")}),
    ({"counts": {"abcd": 1}}, {('counts["abcd"]', "string.max_len")}),
    ({"counts": {"a": 0}}, {('counts["a"]', "int32.gt")}),
    ({"counts": {"a": 1, "b": 1, "c": 1}}, {("counts", "map.max_pairs")}),
    ({"color": "COLOR_COLD"}, {("color", "enum.not_in")}),
    ({"data": "AAAAAAA="}, {("data", "bytes.max_len")}),
    ({"email": "x"}, {("email", "string.email")}),
    ({"nick": "x"}, {("nick", "string.min_len")}),
    ({"at": "2100-01-01T00:00:00Z"}, {("at", "timestamp.lt")}),
    ({"host": "-"}, {("host", "string.hostname")}),
    ({"size": "2"}, {("size", "uint64.in")}),
    ({"high": "1"}, {("", "low_below_high")}),
    ({"email": ...}, {("contact", "required")}),
    ({"leaf": ...}, {("leaf", "required")}),
    ({"name": ..., "leaf": ...}, {("name", "string.min_len"), ("leaf", "required")}),
]


def with_changes(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (GOOD | changes).items() if value is not ...}


@pytest.mark.parametrize(("changes", "violations"), RULES)
def test_violation_at_the_gateway_has_the_rule_id_of_protovalidate(
    pipeline: Pipeline, changes: dict[str, Any], violations: set[tuple[str, str]]
) -> None:
    document = with_changes(changes)

    status, response = pipeline.request("POST", "/v1/kinds:check", document)

    found = {(each["field"], each["rule"]) for each in (response or {}).get("violations", [])}
    assert found == violations
    assert status == (422 if violations else 204)


INEXPRESSIBLE = {
    "bytes.max_len",
    "low_below_high",
    "string.hostname",
    "timestamp.lt",
    "uint64.in",
}
"""Rules that JSON Schema cannot express, or not exactly."""
BOUND_OF_A_STRING = {"high": "1000000000001"}
"""JSON Schema bounds numbers, but not numbers in strings."""


@pytest.mark.parametrize(
    ("changes", "violations"), [rule for rule in RULES if rule[0] != BOUND_OF_A_STRING]
)
def test_rule_is_in_the_document(
    pipeline: Pipeline, changes: dict[str, Any], violations: set[tuple[str, str]]
) -> None:
    document = json.loads((pipeline.package / "openapi.json").read_text())
    operation = document["paths"]["/v1/kinds:check"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    validator = Draft202012Validator({**schema, "components": document["components"]})

    expressible = {rule for _, rule in violations} - INEXPRESSIBLE

    assert validator.is_valid(with_changes(changes)) == (not expressible)


COUNT = "postbus.kinds.v1.KindsService.Count"


def test_stream_over_rest_is_a_line_for_each_message(pipeline: Pipeline) -> None:
    status, lines = pipeline.request("GET", "/v1/kinds:count?to=100")

    assert status == 200
    assert lines == [{"result": {"number": str(number)}} for number in range(1, 101)]
    assert pipeline.request("GET", "/v1/kinds:count") == (200, [])


def test_stream_over_rest_fails_with_a_status_or_with_its_last_line(pipeline: Pipeline) -> None:
    status, problem = pipeline.request("GET", "/v1/kinds:count?to=3&failAt=1")
    assert (status, problem["reason"]) == (409, "TOLD_TO_FAIL")
    assert pipeline.request("GET", "/v1/kinds:count?to=-1")[0] == 422

    status, lines = pipeline.request("GET", "/v1/kinds:count?to=3&failAt=3")

    assert status == 200
    assert lines[:2] == [{"result": {"number": "1"}}, {"result": {"number": "2"}}]
    assert lines[2]["error"]["reason"] == "TOLD_TO_FAIL"


def test_stream_over_the_websocket_is_results_and_a_completed_frame(pipeline: Pipeline) -> None:
    _, frames = pipeline.request(
        "WEBSOCKET",
        "",
        [
            {"id": "1", "authenticate": {"accessToken": pipeline.token}},
            {"id": "2", "call": {"method": COUNT, "request": {"to": 3, "failAt": 2}}},
            {"id": "3", "call": {"method": COUNT, "request": {"to": 50}}},
        ],
    )

    of_the_second = [frame for frame in frames if frame["id"] == "2"]
    of_the_third = [frame for frame in frames if frame["id"] == "3"]
    assert of_the_second[0]["result"]["response"]["number"] == "1"
    assert of_the_second[1]["error"]["reason"] == "TOLD_TO_FAIL"
    numbers = [frame["result"]["response"]["number"] for frame in of_the_third[:-1]]
    assert numbers == [str(number) for number in range(1, 51)]
    assert of_the_third[-1] == {"id": "3", "completed": {}}


def test_stream_is_iterated_by_the_generated_stub(pipeline: Pipeline) -> None:
    assert pipeline.request("STUB", "", 40) == (0, list(range(1, 41)))


def test_cancelled_call_gets_an_error_frame(pipeline: Pipeline) -> None:
    _, frames = pipeline.request(
        "WEBSOCKET",
        "",
        [
            {"id": "1", "authenticate": {"accessToken": pipeline.token}},
            {"id": "2", "call": {"method": COUNT, "request": {"to": 1000000}}},
            {"id": "3", "cancel": {"call": "2"}},
            {"id": "4", "cancel": {"call": "nonsense"}},
        ],
    )

    errors = {frame["id"]: frame["error"]["reason"] for frame in frames if "error" in frame}
    assert errors == {"2": "CANCELLED", "4": "UNKNOWN_CALL"}


def test_two_versions_of_a_package_are_served_and_documented_side_by_side(
    pipeline: Pipeline,
) -> None:
    document = json.loads((pipeline.package / "openapi.json").read_text())
    schemas, second = document["components"]["schemas"], document["paths"]["/v2/kinds"]["post"]

    assert pipeline.request("POST", "/v1/kinds", {"scalars": {"string": "1"}})[0] == 200
    assert pipeline.request("POST", "/v2/kinds", {"text": "2"}) == (200, {"text": "2"})
    assert schemas["KindsV2EchoResponse"]["properties"].keys() == {"text"}
    assert second["operationId"] == "KindsV2KindsService_Echo"
    assert second["tags"] == ["KindsV2KindsService"]
    assert document["paths"]["/v1/kinds"]["post"]["operationId"] == "Echo"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v2/x/7/x/2", {"a": "x/7", "b": "x/2"}),
        ("/v2/pairs/1/2/3", {"a": "1/2", "b": "3"}),
    ],
)
def test_fields_of_several_segments_keep_their_own_values(
    pipeline: Pipeline, path: str, fields: dict[str, str]
) -> None:
    assert pipeline.request("GET", path) == (200, fields)
