"""Times as MongoDB stores them here: microseconds since 1970 in UTC."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

__all__ = ["from_micros", "now", "sort_key", "time_of_key", "to_micros"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICRO: Final = timedelta(microseconds=1)


def now() -> int:
    """Return the current time in microseconds."""
    return to_micros(datetime.now(UTC))


def to_micros(time: datetime) -> int:
    """Convert a time to microseconds."""
    return (time - _EPOCH) // _MICRO


@lru_cache(maxsize=1024)  # the three times of a post are usually equal
def from_micros(micros: int) -> datetime:
    """Convert microseconds to a time in UTC."""
    return _EPOCH + micros * _MICRO


def sort_key(micros: int, id_: str) -> str:
    """Return a string that sorts by time, then id, so that one index serves range queries."""
    return f"{micros:016x} {id_}"


def time_of_key(key: str) -> int:
    """Return the time of a `sort_key` in microseconds."""
    return int(key.partition(" ")[0], 16)
