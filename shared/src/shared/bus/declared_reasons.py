"""The reasons that the contract allows for the errors of a method."""

import logging
from collections import Counter

from postbus.reasons import REASONS
from postbus.registry import Method
from postbus_runtime.reasons import Scope
from shared.errors import ServiceError
from shared.limited_log import LimitedLog

__all__ = ["DeclaredReasons", "is_declared"]


def is_declared(method: Method, error: ServiceError) -> bool:
    """Return whether the contract has the reason, with this code, for errors of the method."""
    reason = error.reason
    if REASONS.get(reason) is not reason:
        return False
    return reason.scope is Scope.CALL or reason in method.reasons


class DeclaredReasons:
    """Reports errors with other reasons: clients do not expect them.

    Each is counted in `incidents` as `error.undeclared_reason`; of each method, one in ten seconds
    is logged.
    """

    def __init__(self, incidents: Counter[str]) -> None:
        self._log = LimitedLog(counts=incidents)

    def check(self, method: Method, error: ServiceError) -> None:
        """Report an error of a method, unless its reason is declared."""
        if not is_declared(method, error):
            self.report(method, error)

    def report(self, method: Method, error: ServiceError) -> None:
        """Count and log an error with an undeclared reason."""
        self._log.write(
            logging.WARNING,
            "error.undeclared_reason",
            key=method.name,
            method=method.name,
            reason=error.reason,
            code=error.code.name,
        )
