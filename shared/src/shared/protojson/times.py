"""Read and write the JSON strings of Timestamp, Duration and FieldMask."""

import re
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from shared.bounds import MAX_PATHS
from shared.protojson.refusal import RefusedError

__all__ = ["read_duration", "read_mask", "read_time", "write_duration", "write_time"]

_TIME: Final = re.compile(  # RFC 3339, section 5.6; T and Z in capitals, no leap seconds
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9])"
    r"(?:\.([0-9]{1,9}))?(?:Z|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)
_DURATION: Final = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]{1,9}))?s")
_FIELD: Final = r"[a-z][A-Za-z0-9]*"
_MASK: Final = re.compile(rf"\*|{_FIELD}(?:\.{_FIELD})*")
_CAPITAL: Final = re.compile("[A-Z]")
_EPOCH: Final = datetime(1970, 1, 1)  # UTC
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_FIRST_SECOND: Final = -62135596800
_LAST_SECOND: Final = 253402300799
"""The first and last second of the years 1 to 9999, since 1970."""
_MAX_DURATION_SECONDS: Final = 315_576_000_000
"""10,000 years."""
_SECOND_NANOS: Final = 1_000_000_000

Seconds = dict[str, int]
"""Seconds and nanoseconds, the fields of a Timestamp or Duration."""


def read_time(text: Any) -> Seconds:
    """Return the fields of a Timestamp, of the years 1 to 9999."""
    found = _TIME.fullmatch(text) if type(text) is str else None
    if found is None:
        raise _not_a("time of RFC 3339, such as 2026-01-31T12:00:00Z", text)
    year, month, day, hour, minute, second, fraction, sign, hours, minutes = found.groups()
    try:
        days = date(int(year), int(month), int(day)).toordinal() - _EPOCH_DAY
    except ValueError:
        raise RefusedError("range", "must be a day of the years 1 to 9999") from None
    seconds = days * 86400 + int(hour) * 3600 + int(minute) * 60 + int(second)
    if sign:
        offset = int(hours) * 3600 + int(minutes) * 60
        seconds += offset if sign == "-" else -offset
        if not _FIRST_SECOND <= seconds <= _LAST_SECOND:
            raise RefusedError("range", "must be a time of the years 1 to 9999")
    return {"seconds": seconds, "nanos": _nanos(fraction)}


def read_duration(text: Any) -> Seconds:
    """Return the fields of a Duration, of 315,576,000,000 seconds (10,000 years) at most."""
    found = _DURATION.fullmatch(text) if type(text) is str else None
    if found is None:
        raise _not_a("number of seconds, such as 1.5s", text)
    sign, whole, fraction = found.groups()
    seconds, nanos = int(whole), _nanos(fraction)
    if seconds > _MAX_DURATION_SECONDS:
        raise RefusedError("range", f"must be at most {_MAX_DURATION_SECONDS} seconds")
    return {"seconds": -seconds, "nanos": -nanos} if sign else {"seconds": seconds, "nanos": nanos}


def _nanos(fraction: str | None) -> int:
    return int(fraction.ljust(9, "0")) if fraction else 0


def read_mask(text: Any) -> dict[str, list[str]]:
    """Return the fields of a FieldMask, with paths in snake_case; `*` means all fields."""
    if type(text) is not str:
        raise _not_a("list of fields, such as title,author.name", text)
    if text.count(",") >= MAX_PATHS:
        raise RefusedError("repeated.max_items", f"must have at most {MAX_PATHS} paths")
    paths = text.split(",") if text else []
    if not all(map(_MASK.fullmatch, paths)):
        raise _not_a("list of fields in lowerCamelCase, such as title,author.name", text)
    return {"paths": [_CAPITAL.sub(lambda found: f"_{found[0].lower()}", each) for each in paths]}


def _not_a(form: str, value: Any) -> RefusedError:
    return RefusedError("format" if type(value) is str else "type", f"must be a {form}")


def write_time(message: Any) -> str:
    """Return a Timestamp in RFC 3339, with 0, 3, 6 or 9 fractional digits.

    Raises ValueError for a time outside the years 1 to 9999.
    """
    return _time_text(message.seconds, message.nanos)


@lru_cache(maxsize=1024)  # messages of one response often have equal times
def _time_text(seconds: int, nanos: int) -> str:
    if not (_FIRST_SECOND <= seconds <= _LAST_SECOND and 0 <= nanos < _SECOND_NANOS):
        raise ValueError("outside the years 1 to 9999")
    return f"{(_EPOCH + timedelta(seconds=seconds)).isoformat()}{_fraction(nanos)}Z"


def write_duration(message: Any) -> str:
    """Return a Duration in seconds, with 0, 3, 6 or 9 fractional digits.

    Raises ValueError if it is out of range, or if seconds and nanoseconds have different signs.
    """
    seconds, nanos = message.seconds, message.nanos
    if abs(seconds) > _MAX_DURATION_SECONDS or abs(nanos) >= _SECOND_NANOS or seconds * nanos < 0:
        raise ValueError("not a duration")
    sign = "-" if seconds < 0 or nanos < 0 else ""
    return f"{sign}{abs(seconds)}{_fraction(abs(nanos))}s"


def _fraction(nanos: int) -> str:
    if not nanos:
        return ""
    if nanos % 1000:
        return f".{nanos:09}"
    return f".{nanos // 1000:06}" if nanos % 1_000_000 else f".{nanos // 1_000_000:03}"
