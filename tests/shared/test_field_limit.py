"""Encoded messages with too many fields are refused before they are parsed."""

import time
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, struct_pb2, wrappers_pb2
from google.protobuf.message import Message

from postbus.bus.v1 import Metadata, Reply, Request
from shared import field_limit, wire
from shared.bus.call import read_request
from shared.bus.reply import result_of
from shared.errors import ServiceError
from shared.field_limit import exceeds_field_limit
from shared.metadata import read_metadata
from shared.wire import encode, message_class, parse_as


def fields_of(message: Any) -> int:
    """Count the fields of a parsed message."""
    count = 0
    for field, value in message.ListFields():
        entry = field.message_type is not None and field.message_type.GetOptions().map_entry
        if entry:
            count += sum(3 + fields_of(value[key]) for key in value)
            continue
        count += field.is_packed
        for each in value if field.is_repeated else [value]:
            count += 1 + (fields_of(each) if field.message_type is not None else 0)
    return count


def nested_list(depth: int) -> Message:
    value: Message = struct_pb2.Value(list_value=struct_pb2.ListValue())
    inner: Any = value
    for _ in range(depth):
        inner = inner.list_value.values.add(list_value={})
    return value


SAMPLES = {
    "messages": struct_pb2.ListValue(
        values=[struct_pb2.Value(number_value=each) for each in range(9)]
    ),
    "map": struct_pb2.Struct(
        fields={
            "a": struct_pb2.Value(string_value="b" * 300),
            "c": struct_pb2.Value(bool_value=True),
        }
    ),
    "nested": nested_list(40),
    "packed varints": descriptor_pb2.SourceCodeInfo.Location(path=[1, 2**31 - 1, 300, 0, 5]),
    "strings": descriptor_pb2.FileDescriptorProto(dependency=["a", "", "b" * 200]),
    "description": descriptor_pb2.FileDescriptorProto.FromString(
        struct_pb2.DESCRIPTOR.serialized_pb
    ),
    "number": wrappers_pb2.DoubleValue(value=1.5),
    "small number": wrappers_pb2.FloatValue(value=1.5),
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_fields_of_every_level_count(sample: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = SAMPLES[sample]
    data, count = message.SerializeToString(), fields_of(message)

    monkeypatch.setattr(field_limit, "_MAX_FIELDS", count)
    assert not exceeds_field_limit(type(message), data)
    monkeypatch.setattr(field_limit, "_MAX_FIELDS", count - 1)
    assert exceeds_field_limit(type(message), data)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (struct_pb2.ListValue, b"\x0a\x00" * 2**22),
        (struct_pb2.Value, b"\x32" + b"\x80\x80\x80\x04" + b"\x0a\x00" * 2**22),
        (struct_pb2.Struct, b"\x0a\x00" * 2**22),
        (descriptor_pb2.SourceCodeInfo.Location, b"\x0a\x80\x80\x80\x04" + b"\x01" * 2**23),
        (wrappers_pb2.Int64Value, b"\x08\x00" * 2**22),
        (wrappers_pb2.Int64Value, b"\x0b\x0c" * 2**22),
    ],
    ids=["list", "inner list", "map", "packed", "repeated number", "unknown groups"],
)
def test_eight_mebibytes_of_fields_are_refused_in_milliseconds(
    kind: type[Message], data: bytes
) -> None:
    began = time.process_time()
    with pytest.raises(ServiceError, match="MALFORMED_MESSAGE"):
        parse_as(kind, data)

    assert time.process_time() - began < 0.15  # 4 million fields take seconds to parse and read


@pytest.mark.parametrize("start", [b"", b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\x09", b"\x32\x05"])
@pytest.mark.parametrize("rest", [b"\xff", b"\x80", b"\x00", b"\x07", b"\x0a", b"\x0a\x7f"])
def test_bytes_that_are_no_message_are_left_to_the_parser(start: bytes, rest: bytes) -> None:
    data = start + rest * 2**20
    began = time.process_time()

    exceeds_field_limit(struct_pb2.ListValue, data)

    assert time.process_time() - began < 0.15


def test_message_of_eight_mebibytes_with_few_fields_is_parsed() -> None:
    payload = bytes(8 * 2**20)

    assert result_of(encode(Reply(payload=payload))).payload == payload
    assert read_request(encode(Request(payload=payload))).payload == payload


@pytest.mark.parametrize("tag", [b"\x4a\x00", b"\x52\x00", b"\x12\x02\x22\x00"])
def test_reply_with_millions_of_fields_is_an_internal_error(tag: bytes) -> None:
    """Header fields, trailer fields and violations."""
    began = time.process_time()
    with pytest.raises(ServiceError, match="INTERNAL"):
        result_of(tag * 2**21)

    assert time.process_time() - began < 0.15


def test_metadata_is_read_in_a_bounded_time() -> None:
    kind: Any = message_class("postbus.bus.v1.Reply")
    values = Metadata(name="x", values=[""] * 100_000)
    many = kind.FromString(encode(Reply(headers=[values] * 2 + [Metadata(name="!")] * 100_000)))
    began = time.process_time()

    assert read_metadata(many.headers) == {}

    assert time.process_time() - began < 0.05


def test_details_of_an_error_are_read_in_a_bounded_time() -> None:
    kind: Any = message_class("postbus.bus.v1.Error")
    error = kind.FromString(b"\x4a\x00" * 200_000)
    began = time.process_time()

    assert len(ServiceError.from_message(error).details) == 20

    assert time.process_time() - began < 0.05


def test_small_message_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes longer than parsing."""
    monkeypatch.setattr(wire, "exceeds_field_limit", None)

    parse_as(struct_pb2.ListValue, b"\x0a\x00" * 2**13)
