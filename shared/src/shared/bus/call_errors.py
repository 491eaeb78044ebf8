"""The errors of calls that got no reply, or none that can be read."""

from postbus import reasons
from postbus.bus.v1 import Outcome
from postbus_runtime.reasons import Reason
from shared.errors import ServiceError

__all__ = [
    "broker_blocked",
    "connection_lost",
    "no_route",
    "not_connected",
    "reply_too_large",
    "unavailable",
    "worker_lost",
]


def unavailable(reason: Reason, message: str, outcome: int = Outcome.NO_EFFECT) -> ServiceError:
    """Return the error of a call that could not be delivered, or that has no reply."""
    return ServiceError(reason, message, retry_after=1, outcome=outcome)


def not_connected() -> ServiceError:
    """Return UNAVAILABLE, NOT_CONNECTED: the call was not sent, the broker is unreachable."""
    return unavailable(reasons.NOT_CONNECTED, "The message broker is unavailable.")


def no_route() -> ServiceError:
    """Return the error of a call that was not sent or was returned: no queue has taken it."""
    return unavailable(reasons.NO_ROUTE, "No worker serves the method at the moment.")


def broker_blocked(outcome: int = Outcome.NO_EFFECT) -> ServiceError:
    """Return the error of a message that the broker does not read."""
    text = "The message broker is short of memory or disk."
    return unavailable(reasons.BROKER_BLOCKED, text, outcome)


def connection_lost() -> ServiceError:
    """Return the error of a message that was sent on a connection before its loss."""
    return unavailable(
        reasons.CONNECTION_LOST,
        "The connection to the message broker was lost; the change may have happened.",
        Outcome.UNKNOWN,
    )


def worker_lost() -> ServiceError:
    """Return the error of a call if the worker has ended before the reply."""
    return unavailable(
        reasons.WORKER_LOST,
        "The worker has stopped before it replied; the change may have happened.",
        Outcome.UNKNOWN,
    )


def reply_too_large() -> ServiceError:
    """Return the error of a call with a reply of more than 16 MiB, which is not read."""
    text = "The reply exceeds 16 MiB."
    return ServiceError(reasons.REPLY_TOO_LARGE, text, outcome=Outcome.UNKNOWN)
