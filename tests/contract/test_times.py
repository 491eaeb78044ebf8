"""Timestamps and Durations over every path: each value is returned exactly, or refused by name."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings

from shared.exact_times import find_inexact_times
from tests.contract.kinds import DURATIONS, TIMES, Kinds, canonical, fill
from tests.contract.pipeline import Pipeline

many = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60)
EPOCH = {"seconds": 0, "nanos": 0}
MICRO = {"seconds": 1, "nanos": 1000}
NANO = {"seconds": 1, "nanos": 1001}
LAST = {"seconds": 253402300799, "nanos": 999_999_000}


def in_all_places(time: dict[str, int], duration: dict[str, int]) -> dict[str, Any]:
    """Return the fields of an Every with the time and the duration in each kind of field."""
    return {
        "optionals": {"time": time, "duration": duration},
        "lists": {"times": [EPOCH, time], "durations": [duration]},
        "maps": {"times": {"a": time}, "durations": {"b": duration}},
        "choices": {"time": time},
        "well_known": {"time": time, "duration": duration},
    }


PLACES_OF_TIMES = [
    "value.optionals.time",
    "value.lists.times[1]",
    'value.maps.times["a"]',
    "value.choices.time",
    "value.wellKnown.time",
]
PLACES_OF_DURATIONS = [
    "value.optionals.duration",
    "value.lists.durations[0]",
    'value.maps.durations["b"]',
    "value.wellKnown.duration",
]


Answer = tuple[Any, list[tuple[str, str]]]
"""The message in the response, None if it was refused; path and rule of each violation."""
Send = Callable[[Pipeline, Any], Answer]


def over_rest(pipeline: Pipeline, message: Any) -> Answer:
    document = json_format.MessageToDict(message)
    status, response = pipeline.request("POST", "/v1/kinds", document)
    if status == 422:
        assert response["reason"] == "INVALID_FIELDS"
        return None, violations_of(response)
    assert status == 200, response
    return json_format.ParseDict(response, pipeline.google("Every")()), []


def over_the_websocket(pipeline: Pipeline, message: Any) -> Answer:
    request = json.dumps({"value": json_format.MessageToDict(message)})
    frame = pipeline.call("Echo", request)
    if "error" in frame:
        return None, violations_of(frame["error"])
    value = frame["result"]["response"]["value"]
    return json_format.ParseDict(value, pipeline.google("Every")()), []


def on_the_bus(pipeline: Pipeline, message: Any) -> Answer:
    kind = pipeline.google("EchoRequest")
    payload, violations = pipeline.call_bytes("Echo", kind(value=message).SerializeToString())
    if payload is None:
        return None, violations
    return pipeline.google("EchoResponse").FromString(payload).value, []


def violations_of(error: Any) -> list[tuple[str, str]]:
    return [(each["field"], each["rule"]) for each in error["violations"]]


def require_exact_or_refused(
    pipeline: Pipeline, send: Send, time: dict[str, int], duration: dict[str, int]
) -> None:
    message = fill(pipeline.google("Every")(), in_all_places(time, duration))
    inexact = PLACES_OF_TIMES if time["nanos"] % 1000 else []
    inexact = inexact + (PLACES_OF_DURATIONS if duration["nanos"] % 1000 else [])

    returned, violations = send(pipeline, message)

    assert sorted(violations) == sorted((path, "precision") for path in inexact)
    assert (returned is None) == bool(violations)
    assert returned is None or canonical(returned) == canonical(message)


@pytest.mark.parametrize("send", [over_rest, on_the_bus])
@many
@given(time=TIMES, duration=DURATIONS)
def test_time_is_returned_exactly_or_refused_by_its_path(
    pipeline: Pipeline, send: Send, time: dict[str, int], duration: dict[str, int]
) -> None:
    require_exact_or_refused(pipeline, send, time, duration)


@pytest.mark.parametrize("time", [MICRO, NANO, LAST], ids=str)
@pytest.mark.parametrize("duration", [MICRO, NANO], ids=str)
def test_websocket_treats_times_as_rest_does(
    pipeline: Pipeline, time: dict[str, int], duration: dict[str, int]
) -> None:
    require_exact_or_refused(pipeline, over_the_websocket, time, duration)


@many
@given(time=TIMES)
def test_time_in_a_query_is_returned_exactly_or_refused(
    pipeline: Pipeline, time: dict[str, int]
) -> None:
    message = fill(pipeline.google("QueryRequest")(), {"since": time})
    text = json_format.MessageToDict(message)["since"]

    status, response = pipeline.request("GET", f"/v1/kinds?since={text}")

    if time["nanos"] % 1000:
        assert (status, violations_of(response)) == (422, [("since", "precision")])
    else:
        assert (status, response["since"]) == (200, text)


def test_epoch_and_zero_are_values(pipeline: Pipeline) -> None:
    message = fill(pipeline.google("Every")(), in_all_places(EPOCH, EPOCH))

    for send in (over_rest, over_the_websocket, on_the_bus):
        returned, _ = send(pipeline, message)
        document = json_format.MessageToDict(returned)
        assert document["wellKnown"] == {"time": "1970-01-01T00:00:00Z", "duration": "0s"}
        assert document["optionals"] == document["wellKnown"]
        assert document["choices"] == {"time": "1970-01-01T00:00:00Z"}
    assert pipeline.request("GET", "/v1/kinds?since=1970-01-01T00:00:00Z")[1]["since"]
    status, response = pipeline.request("POST", "/v1/kinds", {"wellKnown": {"duration": "-0s"}})
    assert (status, response["wellKnown"]) == (200, {"duration": "0s"})


def test_absent_time_stays_absent(pipeline: Pipeline, kinds: Kinds) -> None:
    message = fill(pipeline.google("Every")(), {"well_known": {}, "optionals": {}, "lists": {}})

    for send in (over_rest, over_the_websocket, on_the_bus):
        returned, _ = send(pipeline, message)
        assert not returned.well_known.ListFields()
        assert not returned.optionals.ListFields()
    assert kinds.messages.WellKnown().time is None
    assert kinds.messages.WellKnown().duration is None


INVALID = [
    ("time", {"seconds": -62135596801}, "range"),
    ("time", {"seconds": 253402300800}, "range"),
    ("time", {"seconds": 2**63 - 1}, "range"),
    ("time", {"nanos": -1000}, "range"),
    ("time", {"nanos": 10**9}, "range"),
    ("time", {"nanos": 999_999_999}, "precision"),
    ("duration", {"seconds": 315_576_000_001}, "range"),
    ("duration", {"seconds": -(2**63)}, "range"),
    ("duration", {"seconds": 1, "nanos": -1000}, "range"),
    ("duration", {"seconds": -1, "nanos": 1000}, "range"),
    ("duration", {"nanos": -(10**9)}, "range"),
    ("duration", {"seconds": -1, "nanos": -1}, "precision"),
]


@pytest.mark.parametrize(("field", "value", "rule"), INVALID, ids=str)
def test_time_that_no_json_contains_is_refused_on_the_bus(
    pipeline: Pipeline, field: str, value: dict[str, int], rule: str
) -> None:
    message = fill(pipeline.google("Every")(), {"well_known": {field: value}})

    assert on_the_bus(pipeline, message) == (None, [(f"value.wellKnown.{field}", rule)])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("0000-12-31T23:59:59Z", "range"),
        ("10000-01-01T00:00:00Z", "format"),
        ("9999-12-31T23:59:59-00:01", "range"),
        ("2016-12-31T23:59:60Z", "format"),  # a leap second, which Timestamp does not have
        ("2026-01-01T00:00:00+24:00", "format"),
        ("2026-01-01T00:00:00.1234567890Z", "format"),
        ("2026-01-01T00:00:00.1234567Z", "precision"),
    ],
)
def test_time_that_is_no_timestamp_is_refused_in_json(
    pipeline: Pipeline, text: str, rule: str
) -> None:
    status, response = pipeline.request("POST", "/v1/kinds", {"wellKnown": {"time": text}})

    assert (status, violations_of(response)) == (422, [("value.wellKnown.time", rule)])
    query = pipeline.request("GET", f"/v1/kinds?since={text.replace('+', '%2B')}")
    assert (query[0], violations_of(query[1])) == (422, [("since", rule)])


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("2026-01-01T00:00:00.123456000Z", "2026-01-01T00:00:00.123456Z"),
        ("2026-01-01T23:59:59+23:59", "2026-01-01T00:00:59Z"),
        ("2026-01-01T00:00:00-00:30", "2026-01-01T00:30:00Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("1969-12-31T23:59:59.999999Z", "1969-12-31T23:59:59.999999Z"),
    ],
)
def test_time_is_written_in_utc_with_0_3_6_or_9_digits(
    pipeline: Pipeline, text: str, written: str
) -> None:
    status, response = pipeline.request("POST", "/v1/kinds", {"wellKnown": {"time": text}})

    assert (status, response["wellKnown"]["time"]) == (200, written)


@pytest.mark.parametrize("value", [EPOCH, MICRO, LAST], ids=str)
def test_class_and_google_read_each_other(kinds: Kinds, value: dict[str, int]) -> None:
    for name, fields in in_all_places(value, EPOCH).items():
        name = {"well_known": "WellKnown"}.get(name, name.capitalize())
        google = kinds.google(name, fields)
        kind = getattr(kinds.messages, name)

        ours = kind.FromString(google.SerializeToString())

        assert ours == kinds.codecs[name].read(google)
        assert type(google).FromString(bytes(ours)) == google
        assert ours.to_dict() == json_format.MessageToDict(google)
        assert kind.from_dict(json_format.MessageToDict(google)) == ours
        assert kind().from_json(ours.to_json()) == ours


def test_class_refuses_a_time_that_it_cannot_represent(kinds: Kinds) -> None:
    google = kinds.google("WellKnown", {"time": NANO})

    with pytest.raises(ValueError, match="whole microseconds"):
        kinds.messages.WellKnown.FromString(google.SerializeToString())
    with pytest.raises(ValueError, match="whole microseconds"):
        kinds.messages.WellKnown.from_dict({"duration": "0.000000001s"})


def test_violations_of_times_are_limited(pipeline: Pipeline) -> None:
    message = fill(pipeline.google("Every")(), {"lists": {"times": [NANO] * 900}})

    for send in (over_rest, over_the_websocket, on_the_bus):
        assert send(pipeline, message)[1] == [
            (f"value.lists.times[{index}]", "precision") for index in range(20)
        ]


def test_walk_of_a_message_ends_after_21_violations(kinds: Kinds) -> None:
    message = kinds.google("Lists", {"times": [NANO] * 900})

    assert len(find_inexact_times(message)) == 21
