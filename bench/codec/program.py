"""Measure one contender of the codec benchmark: `program.py NAME FOLDER`.

Prints the microseconds of each measure as JSON.
"""

import importlib
import json
import sys
import timeit
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

NAME, FOLDER = sys.argv[1:]
sys.path.insert(0, FOLDER)
SECONDS = 0.2
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def values(author: Any, status: Any) -> dict[str, Any]:
    """Return the fields of the post."""
    return {
        "id": "018f3f6e-0000-7000-8000-000000000001",
        "author": author,
        "title": "How a post travels over a bus",
        "body": "x" * 200,
        "created_at": NOW,
        "tags": ["python", "protobuf"],
        "summary": "A summary of the post.",
        "status": status,
        "likes": 12345,
        "image_url": "https://example.com/image.png",
        "labels": {"language": "en"},
        "pinned": True,
    }


AUTHOR = {"id": "018f3f6e-0000-7000-8000-000000000002", "username": "alice"}
Functions = tuple[Callable[[], Any], Callable[[Any], bytes], Callable[[bytes], Any]]


def ours() -> Functions:
    """Return the functions of betterproto's classes with our constructors and codec."""
    messages, codec = (importlib.import_module(name) for name in ("bench.v1", "bench.codec"))
    entry = codec.CODECS[messages.Post]
    parse, read, write, kind = entry.upb.FromString, entry.read, entry.write, entry.upb
    status = messages.Status.PUBLISHED

    def encode(message: Any) -> bytes:
        target = kind()
        write(message, target)
        return bytes(target.SerializeToString())

    return (
        lambda: messages.Post(**values(messages.Author(**AUTHOR), status)),
        encode,
        lambda data: read(parse(data)),
    )


def betterproto() -> Functions:
    """Return the functions of plain betterproto 2.0.0b7."""
    messages = importlib.import_module("plain.v1")
    status = messages.Status.PUBLISHED
    return (
        lambda: messages.Post(**values(messages.Author(**AUTHOR), status)),
        bytes,
        lambda data: messages.Post().parse(data),
    )


def betterproto2() -> Functions:
    """Return the functions of betterproto2."""
    messages = importlib.import_module("two.bench.v1")
    status = messages.Status.PUBLISHED
    return (
        lambda: messages.Post(**values(messages.Author(**AUTHOR), status)),
        bytes,
        messages.Post.parse,
    )


def main() -> None:
    """Print the measures of the contender."""
    make, encode, decode = globals()[NAME]()
    message = make()
    data = encode(message)
    measures: dict[str, Callable[[], Any]] = {
        "make + encode + decode": lambda: decode(encode(make())),
        "decode": lambda: decode(data),
        "encode": lambda: encode(message),
        "make": make,
    }
    print(
        json.dumps(
            {name: median(function) for name, function in measures.items()} | {"bytes": len(data)}
        )
    )


def median(function: Callable[[], Any]) -> float:
    """Return the microseconds of one call: the median of five runs."""
    timer = timeit.Timer(function)
    number = max(1, int(SECONDS / (timer.timeit(100) / 100)))
    return sorted(timer.repeat(5, number))[2] / number * 1e6


if __name__ == "__main__":
    main()
