"""Malformed messages are refused quickly and without a memory leak."""

import resource
import time
from contextlib import suppress
from statistics import median

import pytest

from postbus.bus.v1 import Code, Event, Request
from postbus.posts.v1 import CreatePostRequest, Post
from shared.errors import ServiceError
from shared.wire import decode, encode

POST = encode(Post(id="1", title="A title", body="A body", version=7))
MALFORMED = {
    "a tag alone": b"\x0a",
    "a length beyond the end": b"\x0a\xff\xff\xff\xff\x07x",
    "a length of 2^63": b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    "a varint without an end": b"\x38" + b"\xff" * 11,
    "a tag without an end": b"\xff" * 11,
    "field number 0": b"\x02\x01x",
    "a group without an end": b"\x0b\x08\x01",
    "an end of a group": b"\x0c",
    "wire type 6": b"\x0e",
    "wire type 7": b"\x0f",
    "text that is not UTF-8": b"\x0a\x02\xc3\x28",
    "text with a surrogate": b"\x0a\x03\xed\xa0\x80",
    "a truncated inner message": b"\x12\x05\x0a\x09x",
    "10 MB of tags": b"\x0a" * 10_000_001,
    "deep nesting of groups": b"\x0b" * 100_000,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_bytes_are_an_invalid_argument(data: bytes) -> None:
    with pytest.raises(ServiceError) as raised:
        decode(Post, data)

    assert (raised.value.code, raised.value.reason) == (Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert str(raised.value).endswith("Not a valid postbus.posts.v1.Post.")


@pytest.mark.parametrize("length", range(1, len(POST)))
def test_truncated_message_is_refused_or_a_prefix(length: int) -> None:
    """A message truncated between two fields is itself a message."""
    with suppress(ServiceError):
        assert POST.startswith(encode(decode(Post, POST[:length])))


def test_unknown_fields_and_wrong_wire_types_are_dropped() -> None:
    unknown = b"\x0a\x01a" + b"\x18\x05" + b"\xfa\x7f\x03xyz"  # the title as a number, field 2047

    assert decode(CreatePostRequest, unknown) == CreatePostRequest(title="a")


def test_large_text_is_accepted() -> None:
    assert len(decode(Post, encode(Post(body="ä" * 5_000_000))).body) == 5_000_000


def test_refusal_is_quick_and_leaks_no_memory() -> None:
    """The limit of 10 ms is a thousand times the usual time; the median is independent of load."""
    small = [data for data in MALFORMED.values() if len(data) < 1_000_000]
    seconds: dict[bytes, list[float]] = {data: [] for data in small}
    refuse(b"".join(small))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(200):
        for data in small:
            began = time.perf_counter()
            refuse(data)
            seconds[data].append(time.perf_counter() - began)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    assert max(map(median, seconds.values())) < 0.01
    assert grown < 5_000, f"{grown} KiB more than before"


def refuse(data: bytes) -> None:
    for kind in (Post, Request, Event):
        with suppress(ServiceError):
            decode(kind, data)
