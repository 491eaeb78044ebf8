"""Errors whose reason the contract does not have for the method are counted and logged."""

import logging
from collections import Counter

import pytest
import structlog.testing

from postbus import reasons
from postbus.registry import METHODS
from postbus_runtime.reasons import Reason
from shared.bus.declared_reasons import DeclaredReasons
from shared.errors import Code, ServiceError
from shared.wire import to_upb

GET_POST = METHODS["postbus.posts.v1.PostsService.GetPost"]


def received(reason: Reason) -> ServiceError:
    """Return an error as it comes from another process."""
    return ServiceError.from_message(to_upb(ServiceError(reason, "No.").to_message("")))


@pytest.mark.parametrize("reason", [reasons.POST_NOT_FOUND, reasons.OVERLOADED], ids=str)
def test_reason_of_the_rpc_or_of_every_call_is_declared(reason: Reason) -> None:
    incidents = Counter[str]()
    declared = DeclaredReasons(incidents)

    declared.check(GET_POST, ServiceError(reason, "No."))
    declared.check(GET_POST, received(reason))

    assert not incidents


@pytest.mark.parametrize(
    "reason",
    [
        reasons.NOT_THE_AUTHOR,  # of other rpcs
        reasons.UNKNOWN_PATH,  # of the gateway
        Reason("POST_NOT_FOUND", Code.INTERNAL),  # with another code
        Reason("MOON_FULL", Code.ABORTED),  # of no contract
    ],
    ids=lambda reason: f"{reason} {reason.code}",
)
def test_other_reason_is_counted_and_logged_once_in_ten_seconds(
    reason: Reason, undeclared_reasons: list[str]
) -> None:
    incidents = Counter[str]()
    declared = DeclaredReasons(incidents)

    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            declared.check(GET_POST, ServiceError(reason, "No."))
        declared.check(GET_POST, received(reason))

    assert incidents == {"error.undeclared_reason": 4}
    assert logs == [
        {
            "event": "error.undeclared_reason",
            "log_level": logging.getLevelName(logging.WARNING).lower(),
            "method": GET_POST.name,
            "reason": str(reason),
            "code": Code.try_value(reason.code).name,
        }
    ]
    assert len(undeclared_reasons) == 4
    undeclared_reasons.clear()
