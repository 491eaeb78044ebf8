"""Requests and responses of the Connect protocol, written by hand."""

import json
import struct
import zlib
from base64 import b64decode
from typing import Any

import httpx
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

POSTS = "/postbus.posts.v1.PostsService"
JSON = {"content-type": "application/json"}
PROTO = {"content-type": "application/proto"}
STREAM = {"content-type": "application/connect+json"}
DETAILS = {each.DESCRIPTOR.full_name: each for each in (BadRequest, ErrorInfo, RetryInfo)}


def gzipped(data: bytes) -> bytes:
    """Compress with gzip."""
    return zlib.compress(data, wbits=31)


def enveloped(data: bytes, flags: int = 0) -> bytes:
    """Put a message of a stream into its envelope."""
    return struct.pack(">BI", flags, len(data)) + data


def envelopes(body: bytes) -> list[tuple[int, bytes]]:
    """Return the flags and the data of each envelope."""
    found = []
    while body:
        flags, size = struct.unpack_from(">BI", body)
        found.append((flags, body[5 : 5 + size]))
        body = body[5 + size :]
    return found


def end_of(response: httpx.Response) -> Any:
    """Return the JSON of the end of a stream."""
    assert response.status_code == 200
    flags, data = envelopes(response.content)[-1]
    assert flags == 2
    return json.loads(data)


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    """Return status, code and reason of a failed unary call."""
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert set(document) <= {"code", "message", "details"}
    return response.status_code, document["code"], reason_of(document)


def reason_of(error: Any) -> str:
    """Return the reason in the details of an error; empty if it has none."""
    return next((str(each.reason) for each in details_of(error) if isinstance(each, ErrorInfo)), "")


def details_of(error: Any) -> list[Message]:
    """Return the details of an error, in the types of google.rpc."""
    found = []
    for each in error.get("details", ()):
        assert set(each) == {"type", "value"}
        assert "=" not in each["value"]
        value = b64decode(each["value"] + "=" * (-len(each["value"]) % 4))
        found.append(DETAILS[each["type"]].FromString(value))
    return found
