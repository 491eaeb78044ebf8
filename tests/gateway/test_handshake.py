"""Refused WebSocket handshakes, and OPTIONS for the server, over raw sockets."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import pytest

from gateway.app import build_app
from postbus.registry import METHODS
from shared.access_tokens import TokenVerifier
from shared.bus.memory import MemoryBus
from tests.gateway.listening import listening

MAX_ANSWER_BYTES = 2048
KEY = "Sec-WebSocket-Key"
PROTOCOL = "Sec-WebSocket-Protocol"
VERSION = "Sec-WebSocket-Version"
VALID = {
    "Host": "gateway",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    VERSION: "13",
    KEY: "dGhlIHNhbXBsZSBub25jZQ==",
}
LINE = "GET /ws HTTP/1.1"
INVALID = (400, "HANDSHAKE_INVALID")


@pytest.fixture
async def port(bus: MemoryBus, verifier: TokenVerifier) -> AsyncIterator[int]:
    async with listening(build_app(bus, verifier, max_body_bytes=10_000)) as port:
        yield port


async def response_to(port: int, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """Return status, fields and body of the response to a request; no body if it is accepted."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *lines = head.split("\r\n")[:-2]
        fields = {name.lower(): value for name, value in (each.split(": ", 1) for each in lines)}
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return int(line.split(" ")[1]), fields, body


def handshake(line: str, fields: Sequence[tuple[str, str]]) -> bytes:
    text = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"{line}\r\n{text}\r\n".encode("latin-1")


def changed(name: str, *values: str) -> list[tuple[str, str]]:
    """Return the fields of a valid handshake with other values of one."""
    others = [(each, value) for each, value in VALID.items() if each != name]
    return [*others, *((name, value) for value in values)]


REFUSED = [
    # The key: 16 bytes in base64.
    *(
        (changed(KEY, value), INVALID)
        for value in (
            "",
            "x",
            "AAAA",
            "dGhlIHNhbXBsZSBub25jZQ=",
            "dGhlIHNhbXBsZSBub25jZQ",
            "=" * 24,
            "dGhlIHNhbXBsZSBub25jZQ==, x",
            "dGhlIHNhbXBsZSBub25j!Q==",
            "d GhlIHNhbXBsZSBub25jZ==",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "\xe9" * 24,
            "\xff",
            "A" * 8000,
        )
    ),
    (changed(KEY), INVALID),
    (changed(KEY, VALID[KEY], VALID[KEY]), (400, "FIELD_REPEATED")),
    # The subprotocols: a list of tokens.
    *(
        (changed(PROTOCOL, value), INVALID)
        for value in (
            "",
            ",",
            "a b",
            "a,,b c",
            "\xe9",
            '"a"',
            "a;b",
            "a=1",
            "(a)",
            "a\tb",
            "\xff" * 8000,
        )
    ),
    (changed(PROTOCOL, "postbus.realtime.v1", ""), INVALID),
    (changed(PROTOCOL, "chat"), (400, "SUBPROTOCOL_UNKNOWN")),
    # The version.
    *(
        (changed(VERSION, value), (426, "WEBSOCKET_VERSION_UNSUPPORTED"))
        for value in (
            "",
            "8",
            "013",
            "13, 8",
            "13 ,13",
            "\xe9",
            "x" * 8000,
        )
    ),
    (changed(VERSION), (426, "WEBSOCKET_VERSION_UNSUPPORTED")),
    (changed(VERSION, "13", "13"), (400, "FIELD_REPEATED")),
    # Connection and Upgrade: one is an offer, with a part that is malformed.
    *(
        (changed("Connection", value), INVALID)
        for value in (
            "Upgrade, a b",
            "Upgrade, \xe9",
            'upgrade,"x"',
        )
    ),
    (changed("Upgrade", "websocket, h2c"), (426, "UPGRADE_REQUIRED")),
    (changed("Upgrade", ""), (426, "UPGRADE_REQUIRED")),
    (changed("Connection"), (426, "UPGRADE_REQUIRED")),
    # Sizes.
    *(
        (changed(name, "x" * 9000), (431, "FIELD_TOO_LARGE"))
        for name in (
            "Cookie",
            KEY,
            PROTOCOL,
            "Origin",
            "User-Agent",
        )
    ),
    (changed("Cookie", "x" * 70_000), (431, "HEAD_TOO_LARGE")),
    ([*VALID.items(), *((f"x{i}", "") for i in range(100))], (431, "TOO_MANY_FIELDS")),
    # Origin, Host, framing.
    (changed("Origin", "https://evil.example"), (403, "ORIGIN_REFUSED")),
    (changed("Origin", "\xe9"), (403, "ORIGIN_REFUSED")),
    (changed("Host"), (400, "HOST_INVALID")),
    (changed("Content-Length", "00"), INVALID),
    (changed("Transfer-Encoding", "gzip"), (400, "FRAMING_INVALID")),
]
LINES = [
    (f"GET /ws?{'x' * 9000} HTTP/1.1", (414, "TARGET_TOO_LONG")),
    ("GET /other HTTP/1.1", (404, "UNKNOWN_PATH")),
    ("GET * HTTP/1.1", (400, "TARGET_INVALID")),
    ("GET /%zz HTTP/1.1", (400, "TARGET_INVALID")),
    ("GET /\xe9 HTTP/1.1", (400, "TARGET_INVALID")),
    ("GET /ws HTTP/2.0", (505, "VERSION_NOT_SUPPORTED")),
    ("FOO /ws HTTP/1.1", (501, "METHOD_UNKNOWN")),
]
TABLE = [
    *((LINE, fields, expected) for fields, expected in REFUSED),
    *((line, list(VALID.items()), expected) for line, expected in LINES),
]


@pytest.mark.parametrize(("line", "fields", "expected"), TABLE, ids=range(len(TABLE)))
async def test_refused_handshake_is_answered_with_a_problem(
    port: int,
    caplog: pytest.LogCaptureFixture,
    line: str,
    fields: list[tuple[str, str]],
    expected: tuple[int, str],
) -> None:
    status, received, body = await response_to(port, handshake(line, fields))

    assert received["content-type"] == "application/problem+json"
    assert received["x-content-type-options"] == "nosniff"
    assert (status, json.loads(body)["reason"]) == expected
    assert len(body) <= MAX_ANSWER_BYTES
    logged = [each for each in caplog.records if each.name != "asyncio"]  # tests before this one
    assert [each for each in logged if each.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    "fields",
    [
        list(VALID.items()),
        changed("Connection", "keep-alive", "upgrade"),
        changed("Upgrade", "WebSocket"),
        changed(PROTOCOL, "chat, postbus.realtime.v1"),
        changed(PROTOCOL, "chat", "postbus.realtime.v1"),
        changed("Cookie", "x" * 8000),
        changed("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
    ],
)
async def test_valid_handshake_is_accepted(port: int, fields: list[tuple[str, str]]) -> None:
    status, received, _ = await response_to(port, handshake(LINE, fields))

    assert (status, received["sec-websocket-accept"]) == (101, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")


@pytest.mark.parametrize("target", ["*", "/v1/posts"])
async def test_options_lists_the_methods(port: int, target: str) -> None:
    sent = handshake(f"OPTIONS {target} HTTP/1.1", [("Host", "gateway")])

    status, fields, body = await response_to(port, sent)

    assert (status, body) == (204, b"")
    assert {"GET", "OPTIONS", "POST"} <= set(fields["allow"].split(", "))
    assert fields["x-content-type-options"] == "nosniff"
    assert fields["referrer-policy"] == "no-referrer"
    assert fields["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("target", ["*", "http://gateway", "HTTPS://gateway:443"])
async def test_options_for_the_server_lists_every_method_of_the_contract(
    port: int, target: str
) -> None:
    sent = handshake(f"OPTIONS {target} HTTP/1.1", [("Host", "gateway")])

    _, fields, _ = await response_to(port, sent)

    verbs = {rule.verb for method in METHODS.values() for rule in method.http}
    assert fields["allow"].split(", ") == sorted(verbs | {"HEAD", "OPTIONS"})
