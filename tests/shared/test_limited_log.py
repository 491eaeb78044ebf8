"""Log lines that messages of the bus can trigger are limited."""

import logging
from collections import Counter

from structlog.testing import capture_logs

from shared.limited_log import LimitedLog


def test_line_after_the_interval_counts_the_omitted_ones() -> None:
    now = [100.0]
    log = LimitedLog(clock=lambda: now[0])

    with capture_logs() as lines:
        for _ in range(5):
            log.write(logging.WARNING, "event.malformed")
        now[0] = 109.9
        log.write(logging.WARNING, "event.malformed")
        now[0] = 110.0
        log.write(logging.ERROR, "event.malformed", queue="q")
        now[0] = 120.0
        log.write(logging.WARNING, "event.malformed")

    assert lines == [
        {"event": "event.malformed", "log_level": "warning"},
        {"event": "event.malformed", "log_level": "error", "queue": "q", "omitted": 5},
        {"event": "event.malformed", "log_level": "warning"},
    ]


def test_events_and_keys_have_separate_limits() -> None:
    log = LimitedLog(2, clock=lambda: 0.0)

    with capture_logs() as lines:
        for _ in range(5):
            log.write(logging.WARNING, "a")
            log.write(logging.WARNING, "b", key="1")
            log.write(logging.WARNING, "b", key="2")

    assert [line["event"] for line in lines] == ["a", "b", "b"] * 2


def test_omitted_lines_count() -> None:
    counts = Counter[str]()
    log = LimitedLog(clock=lambda: 0.0, counts=counts)

    with capture_logs() as lines:
        for _ in range(3):
            log.write(logging.WARNING, "a")

    assert (len(lines), counts) == (1, {"a": 3})
