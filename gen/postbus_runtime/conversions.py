"""Conversions between upb values and Python values, for the codec."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

__all__ = [
    "MAX_DURATION_SECONDS",
    "Codec",
    "EnumMembers",
    "InexactTimeError",
    "read_duration",
    "read_time",
    "write_duration",
    "write_time",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SECOND_MICROS: Final = 1_000_000
MAX_DURATION_SECONDS: Final = 315_576_000_000
"""Seconds of the longest Duration: 10,000 years."""


class InexactTimeError(ValueError):
    """Raised for a Timestamp or Duration that datetime or timedelta cannot represent exactly."""

    def __init__(self) -> None:
        super().__init__("a time is not valid, or does not have whole microseconds")


@dataclass(frozen=True, slots=True)
class Codec:
    """The conversions of a message class. `upb` is google's class of the same message.

    `read` returns an object for a upb message. It raises InexactTimeError for a time or duration
    that has parts of a microsecond, or is not valid; OverflowError outside the years 1 to 9999.
    `write` fills a new upb message from an object.
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
    """Return the time of a Timestamp; raises like `Codec.read`."""
    nanos = m.nanos
    micros = nanos // 1000
    if micros * 1000 != nanos or not 0 <= micros < _SECOND_MICROS:
        raise InexactTimeError
    return _EPOCH + timedelta(0, m.seconds, micros)


def write_time(value: datetime, m: Any) -> None:
    """Fill a Timestamp, which is then present even for the epoch."""
    since = value - _EPOCH
    if seconds := since.days * 86400 + since.seconds:
        m.seconds = seconds
    if since.microseconds:
        m.nanos = since.microseconds * 1000
    elif not seconds:
        m.SetInParent()


def read_duration(m: Any) -> timedelta:
    """Return the time span of a Duration; raises like `Codec.read`."""
    seconds, nanos = m.seconds, m.nanos
    micros = nanos // 1000
    if micros * 1000 != nanos or not -_SECOND_MICROS < micros < _SECOND_MICROS:
        raise InexactTimeError
    if seconds * nanos < 0 or not -MAX_DURATION_SECONDS <= seconds <= MAX_DURATION_SECONDS:
        raise InexactTimeError
    return timedelta(0, seconds, micros)


def write_duration(value: timedelta, m: Any) -> None:
    """Fill a Duration; its seconds and nanoseconds have the same sign."""
    microseconds = abs(value) // _MICROSECOND
    sign = -1 if value.days < 0 else 1
    if seconds := microseconds // 1_000_000:
        m.seconds = sign * seconds
    if rest := microseconds % 1_000_000:
        m.nanos = sign * rest * 1000
    elif not seconds:
        m.SetInParent()
