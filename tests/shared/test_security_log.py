"""The security log: bounded lines, complete counts, and no event twice."""

from structlog.testing import capture_logs

from postbus import reasons
from shared.context import Context
from shared.errors import ServiceError
from shared.security_log import SecurityEvent, SecurityLog
from shared.trace import new_traceparent


def test_flood_of_security_events_writes_few_lines_and_is_counted() -> None:
    now = 0.0
    log = SecurityLog(clock=lambda: now)

    with capture_logs() as lines:
        for _ in range(1000):
            log.write(SecurityEvent.LOG_IN_FAILED)
        log.write(SecurityEvent.REFRESH_REUSED)
        now = 10.0
        log.write(SecurityEvent.LOG_IN_FAILED)

    names = [line["event"] for line in lines]
    assert names == ["security.log_in_failed"] * 100 + [
        "security.refresh_reused",
        "security.log_in_failed",
    ]
    assert lines[-1]["omitted"] == 900
    assert log.counts == {"security.log_in_failed": 1001, "security.refresh_reused": 1}


def test_refusal_is_an_event_of_the_process_that_raised_it() -> None:
    log = SecurityLog()
    own = ServiceError(reasons.TOKEN_INVALID, "")
    of_worker = ServiceError(reasons.TOKEN_INVALID, "", trace_id="1")
    expired = ServiceError(reasons.TOKEN_EXPIRED, "")
    forbidden = ServiceError(reasons.NOT_THE_AUTHOR, "")
    for error in (own, of_worker, expired, forbidden):
        log.record_refusal(error)

    assert log.counts == {"security.token_refused": 1, "security.forbidden": 1}


def test_line_has_the_method_the_address_and_the_trace_of_the_call() -> None:
    parent = new_traceparent()
    context = Context(name="Method", deadline=0, traceparent=parent, client_address="192.0.2.1")

    with capture_logs() as lines:
        SecurityLog().write(SecurityEvent.LOG_IN_FAILED, context, user_id="1")

    assert lines == [
        {
            "event": "security.log_in_failed",
            "log_level": "info",
            "method": "Method",
            "address": "192.0.2.1",
            "user_id": "1",
            "trace_id": parent[3:35],
        }
    ]
