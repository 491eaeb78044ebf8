"""Properties of messages that pamqp cannot decode, so that aio-pika reads the messages anyway.

Any service can publish a time beyond the year 9999, a text that is not UTF-8, or nested tables
without end. aiormq closes the connection at such a message, so that its queue could be neither
displayed nor moved.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from pamqp import decode

__all__ = ["accept_any_properties"]

_Decode = Callable[[bytes], tuple[int, Any]]
_TIME_BYTES: Final = 8
_LENGTH_BYTES: Final = 4


def _lenient(strict: _Decode, length: Callable[[bytes], int], default: Any) -> _Decode:
    """Return a function that decodes as `strict` does, and whatever it refuses as `default`."""

    def decoded(value: bytes) -> tuple[int, Any]:
        try:
            return strict(value)
        except (ValueError, ArithmeticError, LookupError, RecursionError):
            if len(value) < length(value):
                raise
            return length(value), default

    return decoded


def _table_length(value: bytes) -> int:
    return _LENGTH_BYTES + int.from_bytes(value[:_LENGTH_BYTES])


def accept_any_properties() -> None:
    """Make pamqp decode malformed properties: headers and texts as empty, a time as 1970.

    Repeated calls have no effect.
    """
    methods: dict[str, Any] = decode.METHODS
    methods["table"] = _lenient(decode.field_table, _table_length, {})
    methods["shortstr"] = _lenient(decode.short_str, lambda value: 1 + value[0], "")
    epoch = datetime.fromtimestamp(0, UTC)
    methods["timestamp"] = _lenient(decode.timestamp, lambda _: _TIME_BYTES, epoch)
