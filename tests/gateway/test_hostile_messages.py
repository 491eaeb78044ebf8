"""Binary bodies that no client library writes, over REST and Connect: read, or refused with 4xx."""

import re
import struct
import time
import zlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.app import build_app
from gateway.connect_codecs import CODECS
from postbus.registry import METHODS, Access
from shared.access_tokens import TokenVerifier
from shared.bus.memory import MemoryBus
from shared.errors import ServiceError
from shared.wire import message_class, require_valid
from tests.gateway.conftest import Worker
from tests.gateway.connect_client import envelopes
from tests.gateway.test_negotiation import drawn
from tests.tokens import TokenMaker

POST_ID = "018f3f6e-0000-7000-8000-000000000001"
ROUTES = [
    (method, rule)
    for method in METHODS.values()
    for rule in method.http
    if rule.body and method.access is not Access.INTERNAL and not method.rate_limit
]
RICH = ["buf.validate.FieldRules", "google.protobuf.FileDescriptorProto"]
"""Messages with oneofs, lists of numbers, recursion, floats and bytes, which the contract lacks."""
few = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=50)


def varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


VARINTS = st.sampled_from(
    [
        b"\x00",
        b"\x80" * 9 + b"\x00",  # ten bytes for 0
        b"\xff" * 9 + b"\x01",
        b"\xff" * 10,
        b"\xff" * 11,
        b"\x80",
    ]
) | st.integers(0, 2**64 - 1).map(varint)
TEXTS = [b"", b"Hi", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", "é".encode(), b"\x00", b"a" * 300]
FIXED = [b"\x00" * 8, b"\xff" * 8, struct.pack("<d", float("nan")), struct.pack("<d", -0.0)]


@st.composite
def messages(draw: st.DrawFn, kind: Any, depth: int = 0) -> bytes:
    """Draw bytes that are nearly a message of this type."""
    known = list(kind.fields)
    parts = []
    for _ in range(draw(st.integers(0, 5))):
        field = draw(st.sampled_from([*known, None]))
        number = field.number if field else draw(st.sampled_from([0, 1, 99, 19_000, 2**29 - 1]))
        inner = field.message_type if field and field.message_type else kind
        parts.append(draw(_field(number, inner, depth)))
    data = b"".join(parts)
    if draw(st.integers(0, 9)) == 0:
        data = data[: draw(st.integers(0, len(data)))]
    return data * draw(st.sampled_from([1, 1, 1, 2, 30]))


@st.composite
def _field(draw: st.DrawFn, number: int, kind: Any, depth: int) -> bytes:
    """Draw a field; its wire type is rarely the one of the contract."""
    wire = draw(st.sampled_from([0, 1, 2, 2, 2, 2, 3, 4, 5, 6, 7]))
    tag = varint(number << 3 | wire)
    if wire == 0:
        return tag + draw(VARINTS)
    if wire in (1, 5):
        return tag + draw(st.sampled_from(FIXED))[: 8 if wire == 1 else 4]
    if wire in (4, 6, 7):
        return tag
    nested = draw(messages(kind, depth + 1)) if depth < 3 else b""
    if wire == 3:
        return tag + nested + draw(st.sampled_from([b"", varint(number << 3 | 4)]))
    packed = st.lists(VARINTS, max_size=5).map(b"".join)
    value = draw(st.sampled_from([nested, *TEXTS, *FIXED]) | packed)
    lengths = [varint(len(value))] * 6 + [b"\xff" * 5, b"\xff" * 10, varint(2**31), b"\x80\x00"]
    return tag + draw(st.sampled_from(lengths)) + value


def read(kind: Any, data: bytes) -> tuple[Any, ServiceError | None]:
    """Return the valid message in the bytes, or the error."""
    try:
        message = CODECS["proto"].read(kind, data)
        require_valid(message)
    except ServiceError as error:
        return None, error
    return message, None


@few
@given(st.data())
@pytest.mark.parametrize("name", [*RICH, "postbus.posts.v1.UpdatePostRequest"])
def test_bytes_are_a_valid_message_or_a_typed_error(name: str, data: st.DataObject) -> None:
    kind: Any = message_class(name)
    sent = data.draw(messages(kind.DESCRIPTOR))
    message, error = read(kind, sent)

    if error is not None:
        assert error.reason in {"MALFORMED_MESSAGE", "INVALID_FIELDS"}
        assert len(error.violations) <= 20
        return
    again = message.SerializeToString()
    assert kind.FromString(again).SerializeToString() == again
    assert again == read(kind, again)[0].SerializeToString()


@pytest.fixture
async def large(
    bus: MemoryBus, verifier: TokenVerifier, tokens: TokenMaker
) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of an application with the usual limit of 1 MiB."""
    app = build_app(bus, verifier, max_body_bytes=2**20)
    transport = httpx.ASGITransport(app)  # raises the exceptions of the application
    headers = {"Authorization": f"Bearer {tokens.token('alice')}"}
    async with (
        app.running(),
        httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as it,
    ):
        yield it


def urls() -> Iterable[tuple[str, str, Any]]:
    for method, rule in ROUTES:
        yield rule.verb, re.sub(r"\{[^}]*\}", POST_ID, rule.path), method


def require_refused(response: httpx.Response) -> None:
    """Assert that a response is a success, or an error of the client with a reason."""
    assert response.status_code < 500, response.text
    if response.status_code < 400:
        return
    assert len(response.content) < 2**16
    document = response.json()
    if response.headers["content-type"] == "application/problem+json":
        assert document["reason"]
        assert document["outcome"] == "NO_EFFECT"
    else:
        assert document["code"] in {"invalid_argument", "resource_exhausted", "unimplemented"}


async def test_hostile_bytes_get_a_typed_error_over_rest_and_connect_alike(
    large: httpx.AsyncClient, worker: Worker
) -> None:
    with capture_logs() as logs:
        for verb, url, method in urls():
            kind: Any = message_class(method.request_name)
            for data in drawn(messages(kind.DESCRIPTOR), 12):
                before = len(worker.requests)
                rest = await large.request(
                    verb, url, content=data, headers={"Content-Type": "application/protobuf"}
                )
                connect = await large.post(
                    f"/{method.route}" if not method.route.startswith("/") else method.route,
                    content=data,
                    headers={"Content-Type": "application/proto"},
                )
                for each in (rest, connect):
                    require_refused(each)
                calls = len(worker.requests) - before
                assert calls == (rest.status_code < 300) + (connect.status_code < 300)
                assert (rest.status_code == 400) == ("MALFORMED" in rest.text)

    assert [each["event"] for each in logs if each["log_level"] == "error"] == []


def _groups(levels: int) -> bytes:
    return b"\xfb\x7f" * levels + b"\xfc\x7f" * levels


def _levels(levels: int) -> bytes:
    data = b""
    for _ in range(levels):
        data = b"\x0a" + varint(len(data)) + data
    return data


SIZE = 100_000
BODIES = {
    "groups": _groups(SIZE // 4),
    "groups that do not end": b"\x0b" * SIZE,
    "levels": _levels(25_000),
    "unknown numbers": b"\xf8\x7f\x01" * (SIZE // 3),
    "unknown groups": b"\xfb\x7f\xfc\x7f" * (SIZE // 4),
    "one field again and again": b"\x0a\x02Hi" * (SIZE // 4),
    "empty elements": b"\x1a\x00" * (SIZE // 2),
    "other wire types": (b"\x08\x01" + b"\x15abcd" + b"\x19abcdefgh") * (SIZE // 16),
    "paths of a mask": b"\x2a\x03\x0a\x01a" * (SIZE // 5),
    "no UTF-8": b"\x0a" + varint(SIZE) + b"\xff" * SIZE,
    "long varints": (b"\xf8\x7f" + b"\x80" * 9 + b"\x01") * (SIZE // 12),
    "lengths": b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01" * (SIZE // 11),
    "text of combining characters": b"\x0a" + varint(SIZE) + "é̂".encode() * (SIZE // 4),
    "zeros": b"\x00" * SIZE,
    "JSON": b'{"title":"' + b"x" * SIZE + b'"}',
}


@pytest.mark.parametrize("name", BODIES)
async def test_100_kb_of_hostile_bytes_cost_few_milliseconds(
    large: httpx.AsyncClient, name: str
) -> None:
    for size in (len(BODIES[name]), 16_000):  # in the thread, and on the event loop
        data = BODIES[name][:size]
        for verb, url, kind in (
            ("POST", "/v1/posts", "application/protobuf"),
            ("PATCH", f"/v1/posts/{POST_ID}", "application/protobuf"),
            ("POST", "/postbus.posts.v1.PostsService/UpdatePost", "application/proto"),
        ):
            spent = []
            for _ in range(3):  # the garbage collector runs in one of them at most
                began = time.process_time()
                sent = {"Content-Type": kind}
                response = await large.request(verb, url, content=data, headers=sent)
                spent.append(time.process_time() - began)

                require_refused(response)
            assert min(spent) < 0.01, (size, url)


@pytest.mark.parametrize("codec", ["proto", "json"])
async def test_gzip_bomb_is_refused_over_connect_and_rest(
    large: httpx.AsyncClient, worker: Worker, codec: str
) -> None:
    bomb = zlib.compress(b"\x00" * 2**27, 9, wbits=31)
    twice = zlib.compress(bomb, 9, wbits=31)
    path = "/postbus.posts.v1.PostsService/CreatePost"
    for data in (bomb, twice, bomb[:1000], bomb[:-4] + b"abcd", bomb + bomb):
        began = time.process_time()
        unary = await large.post(
            path,
            content=data,
            headers={"Content-Type": f"application/{codec}", "Content-Encoding": "gzip"},
        )
        rest = await large.post(
            "/v1/posts",
            content=data,
            headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
        )
        stream = await large.post(
            "/postbus.posts.v1.ExportService/ExportMe",
            content=struct.pack(">BI", 1, len(data)) + data,
            headers={
                "Content-Type": f"application/connect+{codec}",
                "Connect-Content-Encoding": "gzip",
            },
        )

        assert time.process_time() - began < 0.1
        assert unary.json()["code"] in {"invalid_argument", "resource_exhausted"}
        assert (rest.status_code, rest.json()["reason"]) == (415, "CONTENT_ENCODING_UNSUPPORTED")
        [(flags, end)] = envelopes(stream.content)
        assert flags == 2
        assert b'"invalid_argument"' in end or b'"resource_exhausted"' in end
    assert worker.requests == []


@pytest.mark.parametrize(
    "kind",
    [
        "application/protobuf; charset=binary",
        "APPLICATION/X-Protobuf",
        'application/protobuf;messageType="a;b, c"',
        "  application/protobuf  ;",
    ],
)
async def test_content_type_of_a_message_has_parameters_and_any_case(
    large: httpx.AsyncClient, worker: Worker, kind: str
) -> None:
    response = await large.post("/v1/posts", content=b"\x0a\x02Hi", headers={"Content-Type": kind})

    assert response.status_code == 201


@pytest.mark.parametrize(
    "kind",
    [
        "application/protobufs",
        "application/proto",
        "application/vnd.google.protobuf",
        "application/protobuf, application/json",
        "application/grpc",
        "application/connect+proto",
        "*/*",
        ";",
        "é",
        "application /protobuf",
        "a" * 10_000,
    ],
)
async def test_other_content_type_is_415_over_rest_and_connect(
    large: httpx.AsyncClient, worker: Worker, kind: str
) -> None:
    headers = {b"Content-Type": kind.encode("latin-1")}
    rest = await large.post("/v1/posts", content=b"\x0a\x02Hi", headers=headers)
    assert (rest.status_code, rest.json()["reason"]) == (415, "NOT_JSON")
    if kind != "application/proto":
        path = "/postbus.posts.v1.PostsService/CreatePost"
        connect = await large.post(path, content=b"\x0a\x02Hi", headers=headers)
        assert (connect.status_code, connect.json()["reason"]) == (415, "CODEC_UNSUPPORTED")
    assert worker.requests == []
