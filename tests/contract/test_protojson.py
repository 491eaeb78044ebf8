"""The reader and writer of ProtoJSON, compared with google's for every kind of field."""

import json
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postbus.registry import MESSAGES
from shared.errors import Code, ServiceError
from shared.protojson import read_json, read_message, write_message
from shared.protojson.reader import Reader
from shared.wire import message_class
from tests.contract.kinds import Kinds, canonical, examples, fill

many = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=5)
more = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=30)
KINDS = [
    "Scalars", "Optionals", "Lists", "Maps", "Choices", "Nested", "WellKnown", "Anything",
    "Documents", "Wrappers", "Names", "Nothing",
]  # fmt: skip
ANY = "type.googleapis.com/"
LEAF = f"{ANY}kinds.v1.Leaf"


def by_google(message: Any) -> Any:
    """Return the JSON that google's writer returns, None if it fails."""
    try:
        return json_format.MessageToDict(
            message,
            always_print_fields_with_no_presence=True,
            descriptor_pool=message.DESCRIPTOR.file.pool,
        )
    except (ValueError, TypeError, json_format.Error):
        return None


def by_us(message: Message) -> Any:
    try:
        return write_message(message)
    except ServiceError:
        return None


def read_by_google(kind: Any, document: Any) -> Any:
    """Return the message that google's reader returns, None if it refuses the document."""
    try:
        pool = kind.DESCRIPTOR.file.pool
        return json_format.ParseDict(document, kind(), descriptor_pool=pool)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, KeyError):
        return None


def read_by_us(kind: Any, document: Any) -> Any:
    """Return the message that our reader returns, None if it refuses fields of the document."""
    try:
        return read_message(kind, document)
    except ServiceError as refused:
        return None if refused.violations else refused


def text_of(document: Any) -> str:
    """Return JSON text with sorted members, in which 1, 1.0, -0.0 and true differ."""
    return json.dumps(document, sort_keys=True)


def require_both_ways(message: Any) -> None:
    document = by_google(message)

    assert text_of(by_us(message)) == text_of(document)
    if document is None:
        return
    text = read_json(json.dumps(document).encode())
    ours = read_by_us(type(message), text)
    google = read_by_google(type(message), text)
    assert ours is not None
    assert google is None or canonical(ours) == canonical(google)


@pytest.mark.parametrize("name", sorted(MESSAGES))
@many
@given(data=st.data())
def test_message_of_the_contract_is_written_and_read_as_by_google(
    name: str, data: st.DataObject
) -> None:
    kind: Any = message_class(name)

    require_both_ways(fill(kind(), data.draw(examples(kind.DESCRIPTOR))))


@pytest.mark.parametrize("name", KINDS)
@more
@given(data=st.data())
def test_every_kind_of_field_is_written_and_read_as_by_google(
    kinds: Kinds, name: str, data: st.DataObject
) -> None:
    kind = kinds.codecs[name].upb

    require_both_ways(fill(kind(), data.draw(examples(kind.DESCRIPTOR))))


OTHERS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-(2**66), 2**66)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "1", "-1.0", "1e2", "NaN", "AA", "COLOR_RED", [], [1], {}, {"a": 1}])
)


def changed(document: Any, draw: Any) -> Any:
    """Return a document with one of its values replaced."""
    if isinstance(document, dict) and document and draw(st.integers(0, 4)):
        name = draw(st.sampled_from(sorted(document)))
        return document | {name: changed(document[name], draw)}
    if isinstance(document, list) and document and draw(st.integers(0, 4)):
        index = draw(st.integers(0, len(document) - 1))
        return [*document[:index], changed(document[index], draw), *document[index + 1 :]]
    return draw(OTHERS)


@pytest.mark.parametrize("name", KINDS)
@more
@given(data=st.data())
def test_accepted_document_has_the_meaning_that_google_reads(
    kinds: Kinds, name: str, data: st.DataObject
) -> None:
    kind = kinds.codecs[name].upb
    document = by_google(fill(kind(), data.draw(examples(kind.DESCRIPTOR))))
    if document is None:
        return
    document = changed(document, data.draw)

    ours, google = read_by_us(kind, document), read_by_google(kind, document)

    if ours is not None and google is not None:
        assert canonical(ours) == canonical(google)
    assert (
        ours is None or google is not None or "3.40282" in repr(document)
    )  # google refuses the largest floats


@more
@given(bits=st.integers(0, 2**32 - 1))
def test_float_is_written_in_the_fewest_digits(kinds: Kinds, bits: int) -> None:
    [number] = struct.unpack("<f", struct.pack("<I", bits))
    message = kinds.codecs["Scalars"].upb(float=number)

    assert repr(write_message(message)["float"]) == repr(by_google(message)["float"])


IN_ANY: list[tuple[str, dict[str, Any]]] = [
    ("google.protobuf.Timestamp", {"value": "1970-01-01T00:00:00.000000001Z"}),
    ("google.protobuf.Duration", {"value": "-1.500s"}),
    ("google.protobuf.FieldMask", {"value": "fooBar,baz"}),
    ("google.protobuf.Struct", {"value": {"a": [1.0, None, {"b": True}]}}),
    ("google.protobuf.Struct", {"value": {}}),
    ("google.protobuf.ListValue", {"value": [1.0, [], {}]}),
    ("google.protobuf.Value", {"value": "x"}),
    ("google.protobuf.Value", {"value": None}),
    ("google.protobuf.Int64Value", {"value": "5"}),
    ("google.protobuf.BytesValue", {"value": "AA=="}),
    ("google.protobuf.FloatValue", {"value": "NaN"}),
    (
        "google.protobuf.Any",
        {"value": {"@type": LEAF, "name": "x", "number": "1"}},
    ),
    ("google.protobuf.Empty", {}),
    ("kinds.v1.Leaf", {"name": "x", "number": "1"}),
    ("kinds.v1.Nothing", {}),
]


@pytest.mark.parametrize(("name", "members"), IN_ANY)
def test_any_can_contain_every_kind_of_message(
    kinds: Kinds, name: str, members: dict[str, Any]
) -> None:
    kind = kinds.codecs["Anything"].upb
    document = {"any": {"@type": ANY + name, **members}}

    message = read_message(kind, document)

    assert message == read_by_google(kind, document)
    assert write_message(message) == by_google(message) == document
    assert next(iter(write_message(message)["any"])) == "@type"


@pytest.mark.parametrize(
    ("document", "rule"),
    [
        ({"@type": f"{ANY}made.up.Type"}, "unknown_type"),
        ({"@type": "kinds.v1.Leaf"}, "unknown_type"),
        ({"name": "x"}, "type"),
        ({"@type": 5}, "type"),
        ({"@type": f"{ANY}google.protobuf.Int32Value"}, "type"),
        ({"@type": f"{ANY}google.protobuf.Int32Value", "value": 1, "more": 2}, "type"),
        ({"@type": f"{ANY}kinds.v1.Leaf", "more": 2}, "unknown_field"),
    ],
)
def test_malformed_any_is_refused(kinds: Kinds, document: dict[str, Any], rule: str) -> None:
    with pytest.raises(ServiceError) as raised:
        read_message(kinds.codecs["Anything"].upb, {"any": document})

    assert [each.rule for each in raised.value.violations] == [rule]


def test_message_that_json_cannot_represent_is_an_internal_error(kinds: Kinds) -> None:
    unknown = kinds.codecs["Anything"].upb(any={"type_url": f"{ANY}made.up.Type", "value": b"x"})
    damaged = kinds.codecs["Anything"].upb(any={"type_url": LEAF, "value": b"\xff"})
    late = kinds.codecs["WellKnown"].upb(time={"seconds": 2**40})

    for message in (unknown, damaged, late):
        with pytest.raises(ServiceError) as raised:
            write_message(message)
        assert raised.value.code is Code.INTERNAL


@pytest.mark.parametrize(
    ("name", "document", "expected"),
    [
        ("Scalars", {"string": "\ud800"}, [("string", "format")]),
        ("Scalars", {"int64": "9" * 65}, [("int64", "format")]),
        ("Scalars", {"int64": "1e999999999"}, [("int64", "range")]),
        ("Scalars", {"int64": "1e" + "9" * 40}, [("int64", "range")]),
        ("Scalars", {"int64": "\u0665"}, [("int64", "format")]),
        ("Scalars", {"int64": "1e30"}, [("int64", "range")]),
        ("Scalars", {"double": "1e400"}, [("double", "range")]),
        ("Scalars", {"double": "0" * 1_101}, [("double", "format")]),
        ("Scalars", {"double": 10**400}, [("double", "range")]),
        ("Scalars", {"double": float("inf")}, [("double", "range")]),
        ("Scalars", {"bytes": "AA="}, [("bytes", "format")]),
        ("Scalars", {"bytes": "AAAAA"}, [("bytes", "format")]),
        ("Scalars", {"bytes": "AA=A"}, [("bytes", "format")]),
        ("Maps", {"bools": {"x": True, "1": 1}}, [("bools[x]", "format"), ("bools[1]", "type")]),
        ("Maps", {"leaves": {"yes": {}}}, [("leaves[yes]", "type")]),
        ("Maps", {"strings": {"a\u202eb": 1}}, [('strings["a\\u202eb"]', "type")]),
        ("Maps", {"strings": {"a" * 70: 1}}, [(f'strings["{"a" * 64}..."]', "type")]),
        ("Nested", {"children": [{}, {"leaf": {"x" * 70: 1}}]},
         [(f"children[1].leaf.{'x' * 64}...", "unknown_field")]),
        ("Maps", {"int64s": {"1": "1", "1.0": "1", "1e0": "1"}},
         [("int64s[1.0]", "duplicate"), ("int64s[1e0]", "duplicate")]),
        ("Lists", {"manyBytes": None, "many_bytes": []}, [("manyBytes", "duplicate")]),
        ("Lists", {"many_bytes": [], "manyBytes": []}, [("manyBytes", "duplicate")]),
        ("WellKnown", {"struct": {"a": [1, float("nan")]}}, [("struct.a[1]", "range")]),
        ("WellKnown", {"mask": 5}, [("mask", "type")]),
        ("WellKnown", {"mask": "a,,b"}, [("mask", "format")]),
        ("Wrappers", {"int32": True}, [("int32", "type")]),
        ("Choices", {"text": "a", "number": 1, "left": "", "right": ""},
         [("", "oneof"), ("", "oneof")]),
    ],
)  # fmt: skip
def test_refusal_names_every_field_and_rule(
    kinds: Kinds, name: str, document: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    with pytest.raises(ServiceError) as raised:
        read_message(kinds.codecs[name].upb, document)

    assert [(each.field, each.rule) for each in raised.value.violations] == expected
    assert all(each.message.isascii() for each in raised.value.violations)
    assert not raised.value.more_violations


def test_readers_may_be_compiled_in_several_threads_at_once(kinds: Kinds) -> None:
    nested = kinds.codecs["Nested"].upb
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            for _ in range(100):
                read, ready = Reader(), Barrier(4)

                def first(read: Reader = read, ready: Barrier = ready) -> Any:
                    ready.wait(5)
                    return read(nested, {"children": [{"children": [{}]}]})

                done = [threads.submit(first) for _ in range(4)]
                assert all(len(each.result(5).children) == 1 for each in done)
    finally:
        sys.setswitchinterval(before)


def test_refusal_lists_20_names_of_an_enum_at_most() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="many.proto", package="many", syntax="proto3")
    color = file.enum_type.add(name="Color")
    for number in range(25):
        color.value.add(name=f"COLOR_{number}", number=number)
    message = file.message_type.add(name="Paint")
    message.field.add(name="color", number=1, label=1, type=14, type_name=".many.Color")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    paint = GetMessageClass(pool.FindMessageTypeByName("many.Paint"))

    with pytest.raises(ServiceError) as raised:
        read_message(paint, {"color": "RED"})

    [violation] = raised.value.violations
    names = [f"COLOR_{number}" for number in range(20)]
    assert violation.message == f"must be one of {', '.join(names)} ..."


def test_number_that_a_closed_enum_lacks_is_refused() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="closed.proto", package="closed")
    file.enum_type.add(name="Color").value.add(name="COLOR_RED", number=0)
    message = file.message_type.add(name="Paint")
    message.field.add(name="color", number=1, label=1, type=14, type_name=".closed.Color")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    paint = GetMessageClass(pool.FindMessageTypeByName("closed.Paint"))

    assert read_message(paint, {"color": 0}) == paint(color=0)
    with pytest.raises(ServiceError) as raised:
        read_message(paint, {"color": 5})
    assert [each.rule for each in raised.value.violations] == ["unknown_value"]


@pytest.mark.parametrize(
    "document",
    [
        {"time": "0001-01-01T00:00:00+00:01"},
        {"time": "9999-12-31T23:59:59-00:01"},
        {"duration": "315576000001s"},
        {"duration": "-315576000001s"},
    ],
)
def test_times_and_durations_end_at_the_bounds_of_protobuf(
    kinds: Kinds, document: dict[str, str]
) -> None:
    kind = kinds.codecs["WellKnown"].upb
    first, last = {"time": "0001-01-01T00:00:00Z"}, {"time": "9999-12-31T23:59:59.999999999Z"}
    long = {"duration": "-315576000000.999999999s"}
    for within in (first, last, long):
        written = write_message(read_message(kind, within))
        assert within.items() <= written.items()

    with pytest.raises(ServiceError) as raised:
        read_message(kind, document)

    assert [each.rule for each in raised.value.violations] == ["range"]


@pytest.mark.parametrize(
    "fields",
    [
        {"time": {"seconds": -62135596801}},
        {"time": {"seconds": 253402300800}},
        {"time": {"seconds": 0, "nanos": 10**9}},
        {"duration": {"seconds": 315_576_000_001}},
        {"duration": {"seconds": 0, "nanos": 10**9}},
        {"duration": {"seconds": 1, "nanos": -1}},
    ],
    ids=str,
)
def test_time_beyond_the_bounds_of_protobuf_is_not_written(
    kinds: Kinds, fields: dict[str, Any]
) -> None:
    with pytest.raises(ServiceError) as raised:
        write_message(kinds.codecs["WellKnown"].upb(**fields))

    assert raised.value.code is Code.INTERNAL


def test_number_of_more_than_20_digits_is_refused_before_it_is_converted(kinds: Kinds) -> None:
    with pytest.raises(ServiceError) as raised:
        read_message(kinds.codecs["Scalars"].upb, {"int64": "1e30"})

    assert [each.message for each in raised.value.violations] == ["is too large or too small"]
