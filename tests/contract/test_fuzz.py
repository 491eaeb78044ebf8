"""Arbitrary bytes and JSON are read as a message or refused with a typed error.

Every run looks for seconds; `just fuzz SECONDS` looks for longer. A finding is printed with the
seed that makes it come back.
"""

import json
import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from gateway.transcoding import Transcoder
from gateway.websocket_frames import read_client_frame
from postbus.registry import MESSAGES, METHODS
from shared.errors import ServiceError
from shared.protojson import parse_json
from shared.wire import decode, encode, message_class
from tests.contract.kinds import examples, fill

pytestmark = pytest.mark.long

SECONDS = float(os.environ.get("POSTBUS_FUZZ_SECONDS", "4"))
TRANSCODERS = [Transcoder(method, rule) for method in METHODS.values() for rule in method.http]


REASONS = {None, "INVALID_FIELDS", "MALFORMED_JSON", "NOT_AN_OBJECT"}


def reason_of(call: Callable[[], object]) -> str | None:
    """Return the reason of a call's ServiceError, or None; any other exception fails the test."""
    try:
        call()
    except ServiceError as error:
        return error.reason
    return None


def search(strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Run examples with a new seed each time, until the time has passed."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        number = random.getrandbits(64)

        @seed(number)
        @settings(
            max_examples=200,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def once(example: Any) -> None:
            check(example)

        once()


@st.composite
def broken_bytes(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw an encoded message with some bytes changed, dropped or duplicated."""
    name = draw(st.sampled_from(sorted(MESSAGES)))
    kind = message_class(name)
    values = draw(examples(kind.DESCRIPTOR))  # type: ignore[arg-type]  # upb's own class
    data = bytearray(fill(kind(), values).SerializeToString())
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(start + 8, len(data))))
        data[start:end] = draw(st.binary(max_size=8) | st.just(data[start:end] * 2))
    return name, bytes(data)


@pytest.mark.timeout(SECONDS + 60)
def test_bytes_are_a_message_or_malformed() -> None:
    def check(example: tuple[str, bytes]) -> None:
        name, data = example
        reason = reason_of(lambda: encode(decode(MESSAGES[name], data)))
        assert reason in {None, "MALFORMED_MESSAGE"}

    search(broken_bytes(), check)


MEMBERS = st.sampled_from(
    sorted(
        {
            name
            for message in MESSAGES
            for field in message_class(message).DESCRIPTOR.fields
            for name in (field.name, field.json_name)
        }
        | {"@type", "value", "authenticate", "call", "subscribe"}
    )
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["NaN", "", "1", "2026-01-01T00:00:00Z", "@type", "1s"]),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(MEMBERS | st.text(max_size=5), children, max_size=4)
    ),
    max_leaves=20,
)


@pytest.mark.timeout(SECONDS + 60)
def test_json_is_a_request_or_a_typed_error() -> None:
    def check(example: tuple[Transcoder, Any, list[tuple[str, str]]]) -> None:
        transcoder, document, query = example
        body = json.dumps(document).encode()
        assert reason_of(lambda: transcoder.read(AnyParameter(), query, body)) in REASONS

    parameters = st.lists(st.tuples(MEMBERS | st.text(max_size=8), st.text(max_size=8)), max_size=3)
    search(st.tuples(st.sampled_from(TRANSCODERS), JSON, parameters), check)


class AnyParameter(dict[str, str]):
    """Path parameters: every name has a UUID."""

    def __missing__(self, name: str) -> str:
        return "018f3f6e-0000-7000-8000-000000000001"


@pytest.mark.timeout(SECONDS + 60)
def test_text_is_a_frame_or_a_typed_error() -> None:
    def check(text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        reason = reason_of(lambda: read_client_frame(parse_json(data), data))
        assert reason in REASONS | {"UNKNOWN_METHOD", "WRONG_REQUEST_TYPE"}

    search(JSON.map(json.dumps) | st.text(max_size=50), check)
