"""The answer to each SQLSTATE (PostgreSQL's documentation, Appendix A).

One table decides about the answer, its outcome, a retry, and whether the connections are replaced.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Literal

import asyncpg

__all__ = ["RULES", "Answer", "Rule", "rule_of"]


class Answer(Enum):
    """The answer to a call that met an error of the database."""

    UNAVAILABLE = auto()
    CONFLICT = auto()
    """The database has rolled back: the work runs again, at last ABORTED."""
    CANCELLED = auto()
    """DEADLINE_EXCEEDED once the budget is used up, else UNAVAILABLE."""
    FAULT = auto()
    """INTERNAL: a fault of this program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The answer to an error."""

    answer: Answer
    maybe_committed: Literal["never", "at commit", "always"] = "never"
    """When the transaction may have been committed despite the error."""
    replaces: bool = False
    """Whether the connections of the pool are replaced."""
    mend: str = ""
    """How an operator ends a state that does not end by itself."""


_FAULT: Final = Rule(answer=Answer.FAULT)
_CONFLICT: Final = Rule(answer=Answer.CONFLICT)
_STALE_PLAN: Final = Rule(answer=Answer.CONFLICT, replaces=True)
_EXHAUSTED: Final = Rule(answer=Answer.UNAVAILABLE)
_LOST: Final = Rule(answer=Answer.UNAVAILABLE, maybe_committed="at commit", replaces=True)
_IN_DOUBT: Final = Rule(answer=Answer.UNAVAILABLE, maybe_committed="always", replaces=True)
_CANCELLED: Final = Rule(answer=Answer.CANCELLED, maybe_committed="at commit")
_READ_ONLY: Final = Rule(
    answer=Answer.UNAVAILABLE,
    replaces=True,
    mend="PostgreSQL is read-only. Let POSTBUS_POSTGRES_URL lead to the primary server, or set"
    " default_transaction_read_only to off.",
)
_LOG_IN: Final = Rule(
    answer=Answer.UNAVAILABLE, mend="Correct user and password in POSTBUS_POSTGRES_URL."
)
_DATABASE: Final = Rule(
    answer=Answer.UNAVAILABLE,
    mend="Create the database by the service's `migrate`, such as: python -m users migrate",
)
_SCHEMA: Final = Rule(
    answer=Answer.UNAVAILABLE,
    mend="The schema is not that of this program. Run the service's `migrate`, such as:"
    " python -m users migrate",
)
_RIGHTS: Final = Rule(
    answer=Answer.UNAVAILABLE,
    mend="Grant the user of POSTBUS_POSTGRES_URL the rights to read and write the tables.",
)
_POOLER: Final = Rule(
    answer=Answer.UNAVAILABLE,
    replaces=True,
    mend="A pooler in transaction mode needs POSTBUS_POSTGRES_POOLED=true.",
)

RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(("00", "01", "02", "03", "09", "0A", "0B", "0F", "0L", "0P", "0Z"), _FAULT),
    **dict.fromkeys(("10", "20", "21", "22", "23", "24", "25", "27", "2B", "2D", "2F"), _FAULT),
    **dict.fromkeys(("34", "38", "39", "3B", "42", "44", "54", "55", "F0", "HV", "P0"), _FAULT),
    "08": _LOST,  # pgbouncer reports all of its own errors as 08P01
    "08007": _IN_DOUBT,
    "25006": _READ_ONLY,
    "25P03": _LOST,  # the time limits of idle and of long transactions end the connection
    "25P04": _LOST,
    "26": _POOLER,
    "28": _LOG_IN,
    "3D": _DATABASE,
    "3F": _SCHEMA,
    "40": _CONFLICT,
    "40002": _FAULT,
    "40003": _IN_DOUBT,
    "42501": _RIGHTS,
    "42703": _SCHEMA,
    "42P01": _SCHEMA,
    "42P05": _POOLER,
    "53": _EXHAUSTED,
    "55P03": _CONFLICT,
    "57": _LOST,
    "57014": _CANCELLED,
    "58": _LOST,
    "72": _CONFLICT,  # the snapshot is too old
    "XX": _FAULT,
}
"""By SQLSTATE, or by its class, the first two characters. Any other is a fault."""


def rule_of(error: asyncpg.PostgresError) -> Rule:
    """Return the rule for an error of the server."""
    if isinstance(error, asyncpg.InvalidCachedStatementError):  # has the SQLSTATE of other errors
        return _STALE_PLAN
    state = error.sqlstate or ""
    return RULES.get(state) or RULES.get(state[:2]) or _FAULT
