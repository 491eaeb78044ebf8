"""The stable reasons of errors, with the options of the contract."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

__all__ = ["HTTP_STATUSES", "Reason", "Scope"]

HTTP_STATUSES: Final[Mapping[int, int]] = MappingProxyType(
    {
        1: 499,  # CANCELLED
        2: 500,  # UNKNOWN
        3: 422,  # INVALID_ARGUMENT
        4: 504,  # DEADLINE_EXCEEDED
        5: 404,  # NOT_FOUND
        6: 409,  # ALREADY_EXISTS
        7: 403,  # PERMISSION_DENIED
        8: 429,  # RESOURCE_EXHAUSTED
        9: 412,  # FAILED_PRECONDITION
        10: 409,  # ABORTED
        11: 422,  # OUT_OF_RANGE
        12: 501,  # UNIMPLEMENTED
        13: 500,  # INTERNAL
        14: 503,  # UNAVAILABLE
        15: 500,  # DATA_LOSS
        16: 401,  # UNAUTHENTICATED
    }
)
"""The HTTP status of each code (google.rpc.Code), unless the reason has another one."""
_FAULT: Final = 500
"""The HTTP status of an unknown code."""


class Scope(StrEnum):
    """The methods or the layer whose errors have a reason."""

    NAMED = "NAMED"
    CALL = "CALL"
    HTTP = "HTTP"
    WEBSOCKET = "WEBSOCKET"
    BUS = "BUS"


class Reason(str):
    """The name of a reason, such as `POST_NOT_FOUND`, with the code of every error that has it.

    `http_status` is by default that of the code. `meaning` is the comment in the contract.
    """

    __slots__ = ("code", "http_status", "meaning", "scope")

    code: int
    scope: Scope
    http_status: int
    meaning: str

    def __new__(
        cls,
        name: str,
        code: int,
        *,
        scope: Scope = Scope.NAMED,
        http_status: int = 0,
        meaning: str = "",
    ) -> "Reason":
        """Return a reason; `code` is the number of a google.rpc.Code."""
        reason = super().__new__(cls, name)
        reason.code = code
        reason.scope = scope
        reason.http_status = http_status or HTTP_STATUSES.get(code, _FAULT)
        reason.meaning = meaning
        return reason
