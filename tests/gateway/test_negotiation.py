"""Accept chooses the media type of a response (RFC 9110, section 12.5.1), for every kind of it."""

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.media_types import accepted, accepts_gzip
from gateway.problems import HttpError
from postbus.bus.v1 import Code, Error, Reply
from postbus.posts.v1 import GetPostResponse, Post
from shared.wire import encode
from tests.gateway.conftest import Worker
from tests.gateway.connect_client import POSTS
from tests.tokens import TokenMaker

JSON, BINARY, OLD = "application/json", "application/protobuf", "application/x-protobuf"
MESSAGE, LINES = (JSON, BINARY, OLD), ("application/x-ndjson",)
POST_ID = "018f3f6e-0000-7000-8000-000000000001"
POST = f"/v1/posts/{POST_ID}"
few = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=200)


@dataclass(frozen=True, slots=True)
class Range:
    """A member of Accept: the media range, its weight in thousandths, and how it is written."""

    name: str
    weight: int
    parameters: tuple[str, ...]
    text: str


def _weight_text(weight: int, style: int) -> str:
    if weight == 1000:
        return ("", ";q=1", "; Q=1.000", " ;\tq=1.")[style]
    digits = f"{weight:03}".rstrip("0") if style else f"{weight:03}"
    return f"{(';', '; ', ' ;', ';')[style]}{'qQ'[style % 2]}=0.{digits}"


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    """Draw a member with other parameters, spaces and case that change nothing."""
    families = ["application/*", "*/*", "text/*", "image/*"]
    name = draw(st.sampled_from([*MESSAGE, *LINES, *families, "text/html", "application/jsonp"]))
    weight = draw(st.sampled_from([0, 1, 10, 500, 501, 999, 1000]))
    some = ["charset=utf-8", 'a=",;q=0, */*"', r'b="\";q=0"', "version=1"]
    parameters = tuple(draw(st.lists(st.sampled_from(some), max_size=2)))
    written = draw(st.sampled_from([name, name.upper(), name.title()]))
    before = "".join(f"{draw(st.sampled_from([';', ' ; ']))}{each}" for each in parameters)
    return Range(
        name, weight, parameters, written + before + _weight_text(weight, draw(st.integers(0, 3)))
    )


@st.composite
def headers(draw: st.DrawFn) -> tuple[str, list[Range]]:
    """Draw a field, with empty members that change nothing, and its members."""
    members = draw(st.lists(ranges(), max_size=5))
    parts = [each.text for each in members]
    for _ in range(draw(st.integers(0, 2))):
        parts.insert(draw(st.integers(0, len(parts))), draw(st.sampled_from(["", " ", "\t"])))
    return draw(st.sampled_from([",", ", ", " ,\t"])).join(parts), members


def preferred(members: Sequence[Range], offered: Sequence[str]) -> str | None:
    """Return the type that section 12.5.1 chooses; None if none is acceptable."""
    counted = [each for each in members if each.weight or not each.parameters]
    weights: dict[str, int] = {}
    for kind in offered:
        weights[kind] = 0 if counted else 1000
        for name in (kind, "application/*", "*/*"):
            if found := [each.weight for each in counted if each.name == name]:
                weights[kind] = max(found)
                break
    best = max(weights.values())
    return next((kind for kind in offered if weights[kind] == best), None) if best else None


def chosen(accept: str, offered: Sequence[str]) -> str | None:
    """Return the chosen media type; None for 406."""
    try:
        return accepted({b"accept": accept.encode()}, offered)
    except HttpError:
        return None


@few
@given(headers(), st.sampled_from([MESSAGE, LINES, (JSON,)]))
def test_media_type_is_that_of_the_rfc(
    header: tuple[str, list[Range]], offered: Sequence[str]
) -> None:
    accept, members = header

    assert chosen(accept, offered) == preferred(members, offered)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", JSON),
        ("application/json;q=0, */*", BINARY),
        ("application/json;q=0, application/protobuf;q=0, */*", OLD),
        ("application/json;q=0, application/*;q=0, */*", None),
        ("application/json;version=2;q=0, */*", JSON),
        ('application/json;a=";q=0", application/protobuf;q=0.5', JSON),
        ('application/json;a="', JSON),
        ('application/json;a=";q=0;", application/protobuf;q=0.5', JSON),
        ("application/json, application/json;q=0", JSON),
        (",, ,", JSON),
        (";q=0", JSON),
        ("application/protobuf;q=1.001, application/json;q=0.9", BINARY),
        ("application", None),
        ("*", None),
    ],
)
def test_media_type_of_unusual_headers(accept: str, kind: str | None) -> None:
    assert chosen(accept, MESSAGE) == kind


def drawn(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Return examples of a strategy, for a test that runs on the event loop."""
    found: list[Any] = []

    @settings(max_examples=count, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


@pytest.fixture
def sent(tokens: TokenMaker) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens.token('alice')}"}


async def test_every_kind_of_response_has_the_media_type_that_accept_chooses(
    gateway: httpx.AsyncClient, worker: Worker, tokens: TokenMaker
) -> None:
    shown = Reply(payload=encode(GetPostResponse(post=Post(id=POST_ID))))
    missing = Reply(error=Error(code=Code.try_value(Code.NOT_FOUND), reason="POST_NOT_FOUND"))
    problem = "application/problem+json"
    for number, (accept, members) in enumerate(drawn(headers(), 60)):
        sent = {"Authorization": f"Bearer {tokens.token(f'user-{number}')}"}  # exports have a rate
        for path, offered in ((POST, MESSAGE), ("/v1/me/export", LINES)):
            worker.reply, kind = shown, preferred(members, offered)
            response = await gateway.get(path, headers=sent | {"Accept": accept})

            assert response.status_code == (200 if kind else 406), accept
            assert response.headers["content-type"] == (kind or problem), accept

        worker.reply, kind = missing, preferred(members, MESSAGE)
        response = await gateway.get(POST, headers={"Accept": accept})
        assert response.status_code == (404 if kind else 406), accept
        assert response.headers["content-type"] == problem


async def test_connect_ignores_accept_because_its_request_names_the_codec(
    gateway: httpx.AsyncClient, worker: Worker, sent: dict[str, str]
) -> None:
    shown = Reply(payload=encode(GetPostResponse(post=Post(id=POST_ID))))
    missing = Reply(error=Error(code=Code.try_value(Code.NOT_FOUND), reason="POST_NOT_FOUND"))
    stream, path = "/postbus.posts.v1.ExportService/ExportMe", f"{POSTS}/GetPost"
    for accept, _ in drawn(headers(), 20):
        for codec, body in (("json", f'{{"id":"{POST_ID}"}}'.encode()), ("proto", b"\x0a\x01a")):
            accepting = sent | {"Accept": accept}
            kind = {"Content-Type": f"application/{codec}"}
            query = {"encoding": codec, "message": body.decode(), "connect": "v1"}
            for reply, status, media_type in (
                (shown, 200, kind["Content-Type"]),
                (missing, 404, JSON),
            ):
                worker.reply = reply
                for response in (
                    await gateway.post(path, content=body, headers=accepting | kind),
                    await gateway.get(path, params=query, headers=accepting),
                ):
                    assert response.status_code == status
                    assert response.headers["content-type"] == media_type
            kind = {"Content-Type": f"application/connect+{codec}"}
            enveloped = struct.pack(">BI", 0, 2 if codec == "json" else 0)
            enveloped += b"{}" if codec == "json" else b""
            response = await gateway.post(stream, content=enveloped, headers=accepting | kind)
            assert response.status_code == 200
            assert response.headers["content-type"] == kind["Content-Type"]


async def test_accept_beyond_2048_bytes_is_refused_without_reading_it(
    gateway: httpx.AsyncClient, worker: Worker
) -> None:
    fitting = "a/b," * 508 + "application/json"
    assert len(fitting) == 2048

    assert (await gateway.get(POST, headers={"Accept": fitting})).status_code == 200
    response = await gateway.get(POST, headers={"Accept": fitting.replace(",", " ,", 1)})

    assert (response.status_code, response.json()["reason"]) == (406, "NOT_ACCEPTABLE")
    assert response.json()["detail"] == "Accept is limited to 2048 bytes."


def test_gzip_is_chosen_by_the_greatest_weight_of_a_bounded_header() -> None:
    assert accepts_gzip("br, GZIP;q=0.5")
    assert accepts_gzip("gzip;q=0, gzip")
    assert not accepts_gzip("gzip;q=0, *")
    assert accepts_gzip("x," * 1022 + "gzip")
    assert not accepts_gzip("x," * 1023 + "gzip")


def test_costliest_header_takes_a_few_milliseconds() -> None:
    for accept in ("a," * 1024, ";" * 2048, 'a;\\"' * 512, '";\\' * 682, "q=0;" * 512):
        began = time.thread_time()
        chosen(accept, MESSAGE)
        assert time.thread_time() - began < 0.01
