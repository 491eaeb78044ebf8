"""Find the times of a message that Python's datetime and timedelta cannot represent exactly.

A handler gets the times that the rules of the contract have judged, or the message is refused:
times are never truncated. A Timestamp is of the years 1 to 9999 and a Duration has 10,000 years at
most, as https://protobuf.dev/reference/protobuf/google.protobuf requires. Both have whole
microseconds, because datetime and timedelta, PostgreSQL and the stored times of `posts` have them.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from google.protobuf.message import Message

from postbus_runtime.conversions import MAX_DURATION_SECONDS
from shared.bounds import is_map
from shared.errors import MAX_VIOLATIONS, FieldViolation, shown_name

__all__ = ["find_inexact_times"]

_FIRST_SECOND: Final = -62135596800
_LAST_SECOND: Final = 253402300799
"""The first and last second of the years 1 to 9999, since 1970."""
_SECOND_NANOS: Final = 1_000_000_000
_Found = tuple[str, str, str]
"""Path, rule and message of a violation."""


def find_inexact_times(message: Message) -> list[FieldViolation]:
    """Return the first violations, 21 at most, in the order of the fields."""
    found = islice(_inexact(message, ""), MAX_VIOLATIONS + 1)
    return [FieldViolation(field=path, rule=rule, message=text) for path, rule, text in found]


def _inexact(message: Any, path: str) -> Iterator[_Found]:
    name = message.DESCRIPTOR.full_name
    if name == "google.protobuf.Timestamp":
        fault = _time_fault(message.seconds, message.nanos)
    elif name == "google.protobuf.Duration":
        fault = _duration_fault(message.seconds, message.nanos)
    else:
        for step, inner in _inner(message):
            yield from _inexact(inner, f"{path}.{step}" if path else step)
        return
    if fault:
        yield path, *fault


def _time_fault(seconds: int, nanos: int) -> tuple[str, str] | None:
    if not _FIRST_SECOND <= seconds <= _LAST_SECOND:
        return "range", "must be a time of the years 1 to 9999"
    if not 0 <= nanos < _SECOND_NANOS:
        return "range", "must have 0 to 999999999 nanoseconds"
    return _precision_fault(nanos)


def _duration_fault(seconds: int, nanos: int) -> tuple[str, str] | None:
    if abs(seconds) > MAX_DURATION_SECONDS:
        return "range", f"must be at most {MAX_DURATION_SECONDS} seconds"
    if abs(nanos) >= _SECOND_NANOS or seconds * nanos < 0:
        return "range", "must have at most 999999999 nanoseconds, with the sign of the seconds"
    return _precision_fault(nanos)


def _precision_fault(nanos: int) -> tuple[str, str] | None:
    return ("precision", "must have whole microseconds") if nanos % 1000 else None


def _inner(message: Any) -> Iterator[tuple[str, Any]]:
    """Yield the messages in the fields of a message, with their steps in JSON paths."""
    for field, value in message.ListFields():
        name = field.json_name
        if is_map(field):
            if field.message_type.fields_by_name["value"].message_type is not None:
                yield from ((f"{name}{_subscript(key)}", value[key]) for key in value)
        elif field.message_type is None:
            continue
        elif field.is_repeated:
            yield from ((f"{name}[{index}]", each) for index, each in enumerate(value))
        else:
            yield name, value


def _subscript(key: Any) -> str:
    return f'["{shown_name(key)}"]' if isinstance(key, str) else f"[{str(key).lower()}]"
