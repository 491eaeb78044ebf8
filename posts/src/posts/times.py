"""Times as MongoDB keeps them here: microseconds since 1970 in UTC."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

__all__ = ["from_micros", "now", "place", "to_micros"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICRO: Final = timedelta(microseconds=1)


def now() -> int:
    """Return the time."""
    return to_micros(datetime.now(UTC))


def to_micros(time: datetime) -> int:
    """Return a time as it is stored."""
    return (time - _EPOCH) // _MICRO


@lru_cache(maxsize=1024)  # most posts have three times that are one
def from_micros(micros: int) -> datetime:
    """Return a stored time."""
    return _EPOCH + micros * _MICRO


def place(micros: int, id_: str) -> str:
    """Return where something stands in the order of time: one text, so that one index bounds it."""
    return f"{micros:016x} {id_}"
