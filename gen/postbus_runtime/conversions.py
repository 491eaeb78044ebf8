"""Conversions between upb values and Python values, for the codec."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from betterproto import PLACEHOLDER

__all__ = [
    "Codec",
    "EnumMembers",
    "read_duration",
    "read_duration_or_unset",
    "read_time",
    "read_time_or_unset",
    "write_duration",
    "write_time",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Codec:
    """The conversions of a message class. `upb` is google's class of the same message.

    `read` returns an object for a upb message, and raises OverflowError for a time that Python's
    datetime cannot hold. `write` fills a new upb message from an object.
    """

    upb: Any
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], None]


class EnumMembers(dict[int, Any]):
    """The members of an enum, by number; an unknown number becomes a member without a name."""

    def __init__(self, kind: Any) -> None:
        super().__init__({int(member): member for member in kind})
        self._kind = kind

    def __missing__(self, number: int) -> Any:
        return self._kind.try_value(number)


def read_time(m: Any) -> datetime:
    """Return the time of a Timestamp; OverflowError beyond the year 9999."""
    return _EPOCH + timedelta(0, m.seconds, m.nanos // 1000)


def read_time_or_unset(m: Any) -> Any:
    """Return the time of a Timestamp; PLACEHOLDER for the epoch, which is unset to betterproto."""
    seconds, nanos = m.seconds, m.nanos
    return _EPOCH + timedelta(0, seconds, nanos // 1000) if seconds or nanos else PLACEHOLDER


def write_time(value: datetime, m: Any) -> None:
    """Fill a Timestamp."""
    since = value - _EPOCH
    if seconds := since.days * 86400 + since.seconds:
        m.seconds = seconds
    if since.microseconds:
        m.nanos = since.microseconds * 1000


def read_duration(m: Any) -> timedelta:
    """Return the time span of a Duration, truncated to microseconds."""
    return timedelta(0, m.seconds, int(m.nanos / 1000))


def read_duration_or_unset(m: Any) -> Any:
    """Return the time span of a Duration; PLACEHOLDER for zero, which is unset to betterproto."""
    return read_duration(m) if m.seconds or m.nanos else PLACEHOLDER


def write_duration(value: timedelta, m: Any) -> None:
    """Fill a Duration; its seconds and nanoseconds have the same sign."""
    microseconds = abs(value) // _MICROSECOND
    sign = -1 if value.days < 0 else 1
    if seconds := microseconds // 1_000_000:
        m.seconds = sign * seconds
    if rest := microseconds % 1_000_000:
        m.nanos = sign * rest * 1000
