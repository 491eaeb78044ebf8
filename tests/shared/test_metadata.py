"""Metadata of calls: header fields from the gateway to handlers, and from handlers to clients."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from postbus import reasons
from postbus.bus.v1 import ErrorDetail, Metadata
from postbus.posts.v1 import (
    CreatePostRequest,
    CreatePostResponse,
    ExportMeRequest,
    ExportMeResponse,
    ExportServiceBase,
    GetPostRequest,
    GetPostResponse,
    PostsServiceBase,
    PostsServiceStub,
)
from postbus_runtime.reasons import Reason
from shared.access_tokens import TokenVerifier
from shared.bus import Call, MessagePattern, ServiceChannel
from shared.bus.memory import MemoryBus
from shared.context import Context
from shared.errors import Code, ServiceError
from shared.metadata import OutgoingMetadata, read_metadata
from shared.runtime.worker import Application, serve
from shared.wire import encode
from tests.idle import complete
from tests.tokens import TokenMaker

GET = "postbus.posts.v1.PostsService.GetPost"
CREATE = "postbus.posts.v1.PostsService.CreatePost"
EXPORT = "postbus.posts.v1.ExportService.ExportMe"
SENT = {"accept-language": ["nl", "de"], "x-tenant": ["7"]}


@complete
class Posts:
    """Handlers that record the metadata of their calls, and send metadata of their own."""

    def __init__(self) -> None:
        self.bus = MemoryBus()
        self.seen: list[Any] = []
        self.failure: Exception | None = None
        self.items = 2

    def _record(self, context: Context) -> None:
        self.seen.append((dict(context.metadata), context.has_client_timeout))
        context.headers.add("X-Head", "a", "b")
        context.trailers.add("x-tail", "z")
        if self.failure is not None:
            raise self.failure

    @MessagePattern(PostsServiceBase.get_post)
    async def get_post(self, request: GetPostRequest, context: Context) -> GetPostResponse:
        self._record(context)
        if request.id == "outer":
            await PostsServiceStub(ServiceChannel(self.bus)).get_post(GetPostRequest(id="inner"))
        return GetPostResponse()

    @MessagePattern(PostsServiceBase.create_post)
    async def create_post(
        self, _request: CreatePostRequest, context: Context
    ) -> CreatePostResponse:
        self._record(context)
        return CreatePostResponse()

    @MessagePattern(ExportServiceBase.export_me)
    async def export_me(
        self, _request: ExportMeRequest, context: Context
    ) -> AsyncGenerator[ExportMeResponse, None]:
        context.headers.add("x-head", "a", "b")
        for number in range(self.items):
            yield ExportMeResponse(cursor=str(number))
        context.trailers.add("x-tail", "z")
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def posts() -> Posts:
    return Posts()


@pytest.fixture
async def bus(posts: Posts, verifier: TokenVerifier) -> AsyncIterator[MemoryBus]:
    async with serve("posts", Application(handlers=[posts], probes={}), posts.bus, verifier):
        yield posts.bus


def get(id_: str = "a", **options: Any) -> Call:
    return Call.new(encode(GetPostRequest(id=id_)), budget=5, **options)


async def test_handler_and_its_nested_calls_get_the_metadata_of_the_client(
    bus: MemoryBus, posts: Posts
) -> None:
    await bus.call(GET, get("outer", metadata=SENT, has_client_timeout=True))
    await bus.call(GET, get())

    assert posts.seen == [(SENT, True), (SENT, False), ({}, False)]


async def test_caller_gets_header_and_trailer_fields(bus: MemoryBus) -> None:
    result = await bus.call(GET, get())

    assert read_metadata(result.reply.headers) == {"x-head": ["a", "b"]}
    assert read_metadata(result.reply.trailers) == {"x-tail": ["z"]}


async def test_error_has_header_and_trailer_fields_and_details(
    bus: MemoryBus, posts: Posts
) -> None:
    details = [ErrorDetail(type="a.B", value=b"1"), ErrorDetail(type="a.C", value=b"2")]
    posts.failure = ServiceError(reasons.DATABASE_CONFLICT, "No tea", details=details)

    with pytest.raises(ServiceError) as raised:
        await bus.call(GET, get())

    assert raised.value.details == details
    assert raised.value.reply_headers == {"x-head": ["a", "b"]}
    assert raised.value.reply_trailers == {"x-tail": ["z"]}


@pytest.mark.parametrize("items", [0, 2])
async def test_stream_has_headers_at_its_begin_and_trailers_at_its_end(
    bus: MemoryBus, posts: Posts, tokens: TokenMaker, items: int
) -> None:
    posts.items = items
    call = Call.new(b"", budget=5, access_token=tokens.token("alice"))

    heads = [call.headers async for _ in bus.stream(EXPORT, call)]

    assert heads == [{"x-head": ["a", "b"]}] * items
    assert call.headers == {"x-head": ["a", "b"]}
    assert call.trailers == {"x-tail": ["z"]}


async def test_error_of_a_stream_has_trailers(
    bus: MemoryBus, posts: Posts, tokens: TokenMaker
) -> None:
    posts.failure = ServiceError(reasons.DATABASE_CONFLICT, "No tea")
    call = Call.new(b"", budget=5, access_token=tokens.token("alice"))

    with pytest.raises(ServiceError) as raised:
        async for _ in bus.stream(EXPORT, call):
            pass

    assert raised.value.reply_trailers == {"x-tail": ["z"]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", "a"),
        ("a b", "a"),
        ("a:", "a"),
        ("x" * 101, "a"),
        ("a", "a\r\nb"),
        ("a", "é"),
        ("a", " a"),
    ],
)
def test_metadata_is_header_fields_in_ascii(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="not a header field"):
        OutgoingMetadata().add(name, value)


def test_metadata_is_bounded() -> None:
    metadata = OutgoingMetadata()
    for _ in range(8):
        metadata.add("a", "b" * 1000)

    with pytest.raises(ValueError, match="more than 8192 bytes"):
        metadata.add("a", "b" * 1000)

    assert sum(map(len, metadata.values["a"])) == 8_000
    many = OutgoingMetadata()
    with pytest.raises(ValueError, match="more than 8192 bytes"):
        many.add("a", *[""] * 1000)


def test_metadata_beyond_the_bounds_is_left_out_of_an_envelope() -> None:
    entries = [
        Metadata(name="a", values=["b" * 5_000]),
        Metadata(name="b", values=["c" * 5_000]),
        Metadata(name="c\n", values=["d"]),
        Metadata(name="d", values=["e"]),
    ]

    assert read_metadata(entries) == {"a": ["b" * 5_000], "d": ["e"]}


def test_details_of_an_error_are_bounded() -> None:
    small = [ErrorDetail(type="a.B", value=b"1")] * 30
    large = [ErrorDetail(type="a.B", value=b"1" * 20_000)] * 3

    assert len(ServiceError(Reason("A", Code.ABORTED), "a", details=small).details) == 20
    assert len(ServiceError(Reason("A", Code.ABORTED), "a", details=large).details) == 1
