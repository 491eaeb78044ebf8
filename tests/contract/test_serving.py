"""Every shape of a method is served as its document says."""

import copy
import json
import zipfile
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.contract.pipeline import Pipeline


def operation(pipeline: Pipeline, verb: str, path: str) -> dict[str, Any]:
    document = json.loads((pipeline.package / "openapi.json").read_text())
    found: dict[str, Any] = document["paths"][path][verb.lower()]
    return found


def body_validator(pipeline: Pipeline, verb: str, path: str) -> Draft202012Validator:
    document = json.loads((pipeline.package / "openapi.json").read_text())
    body = document["paths"][path][verb.lower()]["requestBody"]["content"]["application/json"]
    return Draft202012Validator({**body["schema"], "components": document["components"]})


@pytest.mark.parametrize(
    ("verb", "path", "body", "status"),
    [
        ("POST", "/v1/kinds:ping", None, 204),
        ("GET", "/v1/kinds:ping", None, 204),
        ("POST", "/v1/kinds:pingWithBody", None, 204),
        ("POST", "/v1/kinds:pingWithBody", {}, 204),
        ("POST", "/v1/kinds:pingWithBody", {"a": 1}, 422),
        ("POST", "/v1/kinds:pingWithBody", [], 400),
        ("POST", "/v1/kinds:ping", {}, 400),
        ("POST", "/v1/kinds:ping?a=1", None, 422),
        ("POST", "/v1/kinds:accept", None, 202),
    ],
)
def test_method_without_fields_is_served(
    pipeline: Pipeline, verb: str, path: str, body: Any, status: int
) -> None:
    served, response = pipeline.request(verb, path, body)

    assert served == status
    if status < 400:
        assert response is None
        described = operation(pipeline, verb, path.partition("?")[0])["responses"]
        assert "content" not in described[str(status)]
        assert [each for each in described if each[0] == "2"] == [str(status)]


@pytest.mark.parametrize("method", ["Ping", "Accept", "PostLatest"])
def test_method_without_fields_is_served_over_the_websocket(
    pipeline: Pipeline, method: str
) -> None:
    assert pipeline.call(method, "{}")["result"]["response"] == {
        "@type": "type.googleapis.com/google.protobuf.Empty"
    }
    assert pipeline.call(method, '{"a": 1}')["error"]["violations"][0]["field"] == "a"


def test_stream_of_empty_messages_is_a_line_for_each(pipeline: Pipeline) -> None:
    assert pipeline.request("GET", "/v1/kinds:beat") == (200, [{"result": {}}] * 2)
    described = operation(pipeline, "GET", "/v1/kinds:beat")["responses"]
    assert "application/x-ndjson" in described["200"]["content"]


def test_route_of_one_verb_does_not_shadow_another_verb(pipeline: Pipeline) -> None:
    assert pipeline.request("GET", "/v1/items/latest") == (200, {"id": "latest"})
    assert pipeline.request("POST", "/v1/items/latest")[0] == 204
    assert pipeline.request("POST", "/v1/items/other")[0] == 405


@pytest.mark.parametrize("url", ["/v1/items/%FF", "/v1/items/a%C3", "/v1/kinds?scalars.string=%FF"])
def test_text_that_is_not_utf_8_is_refused(pipeline: Pipeline, url: str) -> None:
    status, problem = pipeline.request("GET", url)

    assert (status, problem["reason"]) == (400, "MALFORMED_URL")


FLOATS = [
    *("NaN", "Infinity", "-Infinity"),
    *(3.4028234663852886e38, -3.4028234663852886e38, 3.4028235e38, 3.4028235677973e38),
    *(1e-45, 1.1754944e-38, 0.1, 16777216.0, 16777217.0, 1e10, 3.3e38, -0.0),
]


@pytest.mark.parametrize("sent", FLOATS)
@pytest.mark.parametrize("place", ["scalars.float", "scalars.double", "lists.floats"])
def test_float_of_a_response_is_valid_and_accepted_again(
    pipeline: Pipeline, place: str, sent: Any
) -> None:
    part, name = place.split(".")
    value = [sent] if part == "lists" else sent

    status, first = pipeline.request("POST", "/v1/kinds", {part: {name: value}})
    assert status == 200, first

    assert body_validator(pipeline, "POST", "/v1/kinds").is_valid(first)
    assert pipeline.request("POST", "/v1/kinds", copy.deepcopy(first)) == (200, first)


PLACE = {"name": "a", "formatted": "A, B"}


@pytest.mark.parametrize("verb", ["PUT", "PATCH"])
def test_resource_can_be_sent_back_as_it_was_read(pipeline: Pipeline, verb: str) -> None:
    _, read = pipeline.request("PUT", "/v1/records/1", {"title": "first"})
    assert read["version"] == "7"
    assert read["place"] == PLACE
    assert read["derived"] == PLACE
    assert body_validator(pipeline, verb, "/v1/records/{record.id}").is_valid(read)

    status, changed = pipeline.request(verb, "/v1/records/1", read | {"title": "second"})

    assert status == 200, changed
    assert changed == read | {"title": "second"}


def test_output_only_members_reach_no_handler_at_any_depth(pipeline: Pipeline) -> None:
    record = {
        "id": "1",
        "title": "a",
        "version": 5,
        "changed_at": "1970-01-01T00:00:00Z",
        "place": PLACE | {"formatted": "x"},
        "places": [PLACE, {"formatted": ""}],
        "byName": {"a": PLACE},
        "chosen": PLACE,
        "parent": {"version": 6, "place": PLACE, "parent": {"place": PLACE, "tags": ["x"]}},
        "tags": ["x"],
    }
    expected = {
        "id": "1",
        "title": "a",
        "version": "0",
        "place": {"name": "a", "formatted": ""},
        "places": [{"name": "a", "formatted": ""}, {"name": "", "formatted": ""}],
        "byName": {"a": {"name": "a", "formatted": ""}},
        "chosen": {"name": "a", "formatted": ""},
        "tags": [],
    }

    status, stored = pipeline.request("POST", "/v1/records:store", {"record": record})
    over_websocket = pipeline.call("Store", json.dumps({"record": record}))

    assert status == 200, stored
    for response in (stored, over_websocket["result"]["response"]):
        got = response["request"]["record"]
        assert got["parent"]["version"] == "0"
        assert got["parent"]["parent"]["place"] == {"name": "a", "formatted": ""}
        del got["parent"]
        assert got == expected | {"places": got["places"], "byName": got["byName"]}
        assert got["places"] == expected["places"]
        assert got["byName"] == expected["byName"]


def test_mask_of_a_patch_has_no_output_only_paths(pipeline: Pipeline) -> None:
    _, read = pipeline.request("PUT", "/v1/records/1", {"title": "first"})
    body = {**read, "place": PLACE, "tags": ["x"], "version": "9"}

    stored = pipeline.call("Store", json.dumps({"record": body, "updateMask": "title"}))
    status, response = pipeline.request("PATCH", "/v1/records/1?updateMask=nope", body)

    assert stored["result"]["response"]["request"]["updateMask"] == "title"
    assert (status, response["violations"][0]["field"]) == (422, "updateMask")


@pytest.mark.parametrize("path", ["/v1/names/{id}"])
def test_resource_whose_fields_are_those_of_the_request_can_be_sent_back(
    pipeline: Pipeline, path: str
) -> None:
    body = {"id": "1", "title": "a", "version": "7", "changedAt": "never", "tags": ["x"]}

    status, response = pipeline.request("PUT", path.replace("{id}", "1"), body)
    over_websocket = pipeline.call("Rename", json.dumps(body))

    assert (status, response["title"]) == (200, "a")
    assert over_websocket["result"]["response"]["record"]["title"] == "a"
    document = json.loads((pipeline.package / "openapi.json").read_text())
    shown = document["components"]["schemas"]["RenameBody"]
    assert shown["properties"]["version"]["readOnly"] is True
    assert pipeline.request("PUT", "/v1/names/1", {"title": "a", "nope": 1})[0] == 422


@pytest.mark.parametrize("verb", ["PUT", "PATCH"])
@pytest.mark.parametrize(
    ("mask", "good"),
    [
        ("title", True),
        ("*", True),
        ("place.name", True),
        ("byName", True),
        ("nope", False),
        ("place.nope", False),
        ("title.nope", False),
        ("title,nope", False),
        ("updateMask", False),
    ],
)
def test_mask_has_paths_of_the_resource_only(
    pipeline: Pipeline, verb: str, mask: str, good: bool
) -> None:
    url = f"/v1/records/1?updateMask={mask}"
    request = json.dumps({"record": {}, "updateMask": mask})

    status, _ = pipeline.request(verb, url, {"title": "a"})
    frames = [pipeline.call(method, request) for method in ("Store", "Mask")]

    assert status == (200 if good else 422)
    assert [("result" in frame) for frame in frames] == [good, good]


MONEY = {"currencyCode": "EUR", "units": "5", "nanos": 0}
FOREIGN = {
    "price": MONEY,
    "prices": {"a": MONEY},
    "days": ["MONDAY", "FRIDAY"],
    "status": {
        "code": 5,
        "message": "no",
        "details": [{"@type": "type.googleapis.com/google.type.Money", **MONEY}],
    },
    "length": {"meters": 1.5, "unit": "UNIT_METER"},
    "name": "records/1",
    "any": {"@type": "type.googleapis.com/acme.units.v1.Length", "meters": 2.0, "unit": 7},
}


def test_third_party_messages_are_served_over_rest_and_the_websocket(pipeline: Pipeline) -> None:
    status, response = pipeline.request("POST", "/v1/foreign", FOREIGN)
    over_websocket = pipeline.call("Foreign", json.dumps(FOREIGN))

    assert status == 200, response
    assert response == {"request": FOREIGN}
    assert over_websocket["result"]["response"]["request"] == FOREIGN
    assert body_validator(pipeline, "POST", "/v1/foreign").is_valid(FOREIGN)
    assert not body_validator(pipeline, "POST", "/v1/foreign").is_valid({"price": {"units": []}})


def test_third_party_message_is_a_query_parameter_and_a_response(pipeline: Pipeline) -> None:
    query = "price.currencyCode=EUR&price.units=5&days=MONDAY&length.unit=UNIT_METER"

    status, response = pipeline.request("GET", f"/v1/price?{query}")

    assert (status, response) == (200, MONEY)
    assert pipeline.request("GET", "/v1/price?price.nope=1")[0] == 422


def test_third_party_classes_and_sources_are_published(pipeline: Pipeline) -> None:
    with zipfile.ZipFile(pipeline.package / "protos.zip") as archive:
        names = set(archive.namelist())

    assert {"google/type/money.proto", "acme/units/v1/length.proto"} <= names
    assert "google/type/latlng.proto" not in names
    classes = {
        path.parent.relative_to(pipeline.package / "imported").as_posix()
        for path in pipeline.package.glob("imported/**/__init__.py")
        if "class " in path.read_text()
    }
    assert classes == {"google/api", "google/rpc", "google/type", "acme/units/v1"}


@pytest.mark.parametrize(
    ("verb", "url"), [("POST", "/v1/files/a"), ("PUT", "/v1/mirror")], ids=["field", "message"]
)
@pytest.mark.parametrize(
    ("media_type", "shown"),
    [
        ("text/csv; charset=utf-8", "text/csv; charset=utf-8"),
        ("image/svg+xml", "image/svg+xml"),
        ("application/json", "application/json"),
        ("nonsense", "application/octet-stream"),
        ("text/html/more", "application/octet-stream"),
    ],
)
@pytest.mark.parametrize("body", ["a,b\n1,2", "{", ""], ids=["text", "not JSON", "empty"])
def test_raw_body_is_served_with_its_own_media_type(
    pipeline: Pipeline, verb: str, url: str, media_type: str, shown: str, body: str
) -> None:
    status, [headers, text] = pipeline.request(f"RAW {verb}", url, f"{media_type}\n{body}")

    assert (status, text) == (200, body)
    assert headers["content-type"] == shown
    assert headers["content-length"] == str(len(body))
    assert headers["content-security-policy"] == "default-src 'none'; sandbox"


def test_raw_body_is_a_message_beside_other_fields_and_over_the_websocket(
    pipeline: Pipeline,
) -> None:
    file = {"contentType": "text/plain", "data": "YWJj", "extensions": []}

    described = pipeline.request("RAW POST", "/v1/files/b:describe", "text/plain\nabc")
    called = pipeline.call("Upload", json.dumps({"name": "b", "file": file}))

    assert described[0] == 200
    assert json.loads(described[1][1]) == {"name": "b", "file": file}
    assert called["result"]["response"]["file"] == file
    content = operation(pipeline, "POST", "/v1/files/{name}")
    assert content["requestBody"]["content"] == {"*/*": {}}
    assert content["responses"]["200"]["content"] == {"*/*": {}}
    assert (
        "application/json"
        in (operation(pipeline, "POST", "/v1/files/{name}:describe")["responses"]["200"]["content"])
    )
