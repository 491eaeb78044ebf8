"""The default numbers of bounds and times; other tests show their effect with smaller values."""

from pathlib import Path

import pytest

from gateway import (
    disconnect,
    event_subscriptions,
    health,
    large_inputs,
    metrics,
    rate_storage,
    request_headers,
    socket_limits,
    targets,
    unfinished_input,
    unfinished_message,
    websocket_calls,
    websocket_closing,
    websocket_connection,
    websocket_protocol,
    websocket_sender,
    worker_metrics,
)
from gateway.http1 import (
    HttpLimits,
    body_framing,
    buffered_connection,
    connection,
    head_fields,
    http_limits,
    protocol,
)

LIMITS = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
HTTP = HttpLimits()


@pytest.mark.parametrize(
    "documented",
    [
        f"{head_fields.HEAD_BYTES / 1024:g} KiB and {head_fields.MAX_FIELDS} fields",
        f"within {HTTP.head_seconds:g} seconds",
        f"within {HTTP.request_seconds:g} seconds",
        f"for {HTTP.write_seconds:g} seconds",
        f"{targets.MAX_PARAMETERS} parameters",
        f"{rate_storage._MAX_KEYS:,} windows",
        f"more for each {socket_limits._BYTES_PER_FRAME / 1024:g} KiB",
        f"{websocket_connection.AUTHENTICATION_BYTES / 1024:g} KiB comes",
        f"within {websocket_connection._AUTHENTICATION_SECONDS:g} seconds",
        f"{websocket_calls._MAX_CALLS} calls",
        f"{websocket_sender._MAX_WAITING_BYTES / 2**20:g} MiB",
    ],
)
def test_bound_has_the_documented_value(documented: str) -> None:
    assert documented in " ".join(LIMITS.split())


@pytest.mark.parametrize(
    ("number", "least", "most"),
    [
        # memory and work for one client
        (body_framing.EXTENSION_BYTES, 1024, 16 * 1024),
        (body_framing.TRAILER_BYTES, 1024, 16 * 1024),
        (connection._MAX_REFUSED, 1, 1000),
        (buffered_connection._BUFFER_BYTES, 1024, 256 * 1024),
        (protocol._DISCARDED_BYTES, HTTP.max_body_bytes, 256 << 20),
        (rate_storage._STORE_CONNECTIONS, 1, 100),
        # time until a client is disconnected
        (HTTP.linger_seconds, 1, 30),
        (websocket_closing._CLOSE_SECONDS, 1, 10),
        # time for which other tasks wait
        (body_framing.STEP_CHUNKS, 1, 1000),
        (event_subscriptions._SLICE, 1, 200),
        (large_inputs.LARGE_BYTES, 4 * 1024, 64 * 1024),
        (large_inputs.SWITCH_SECONDS, 0.0001, 0.002),
        (websocket_protocol._PARSE_BYTES, 125, 4096),
        (websocket_protocol._TURN_SECONDS, 0.0001, 0.005),
        # age of shared results, and times for the parts that they come from
        (health._FRESH_SECONDS, 0.01, 1),
        (metrics._FRESH_SECONDS, 0.1, 1),
        (worker_metrics._SECONDS, 0.05, 1),
        (rate_storage._STORE_SECONDS, 0.01, 0.25),
        (disconnect._UNWATCHED_SECONDS, 0.01, 0.25),
        # hints for clients, and log lines
        (http_limits._RETRY_SECONDS, 1, 60),
        (unfinished_input._RETRY_SECONDS, 1, 60),
        (unfinished_input.FREE_BYTES, 1024, 64 * 1024),
        (unfinished_message._MESSAGE_SECONDS, 5, 60),
        (socket_limits._RETRY_SECONDS, 1, 60),
        (socket_limits._MAX_BUDGETS, 1_000, 100_000),
        # of requests
        (request_headers._MIN_TIMEOUT, 0.0001, 0.01),
        (request_headers.MAX_TIMEOUT, 10, 60),
    ],
)
def test_number_is_within_the_range_that_its_purpose_allows(
    number: float, least: float, most: float
) -> None:
    assert least <= number <= most
