"""From upb's values to Python's and back. Copied to gen/, beside the codec that uses it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from betterproto import PLACEHOLDER

__all__ = [
    "Codec",
    "Members",
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
    """How the messages of a class are converted. `upb` is google's class."""

    upb: Any
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], None]


class Members(dict[int, Any]):
    """Members of an enum by number; an unknown number becomes a member without a name."""

    def __init__(self, kind: Any) -> None:
        super().__init__({int(member): member for member in kind})
        self._kind = kind

    def __missing__(self, number: int) -> Any:
        return self._kind.try_value(number)


def read_time(m: Any) -> datetime:
    """Return a Timestamp; OverflowError beyond year 9999."""
    return _EPOCH + timedelta(0, m.seconds, m.nanos // 1000)


def read_time_or_unset(m: Any) -> Any:
    """Return a Timestamp; betterproto can't tell the epoch from a time that is not there."""
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
    """Return a Duration, in whole microseconds."""
    return timedelta(0, m.seconds, int(m.nanos / 1000))


def read_duration_or_unset(m: Any) -> Any:
    """Return a Duration, or what stands for none."""
    return read_duration(m) if m.seconds or m.nanos else PLACEHOLDER


def write_duration(value: timedelta, m: Any) -> None:
    """Fill a Duration; seconds and nanoseconds have the same sign."""
    microseconds = abs(value) // _MICROSECOND
    sign = -1 if value.days < 0 else 1
    if seconds := microseconds // 1_000_000:
        m.seconds = sign * seconds
    if rest := microseconds % 1_000_000:
        m.nanos = sign * rest * 1000
