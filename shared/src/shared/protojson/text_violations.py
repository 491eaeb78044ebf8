"""The violations of a JSON text that orjson refuses, or that repeats members."""

import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, NoReturn

from postbus import reasons
from shared.errors import MAX_VIOLATIONS, ServiceError, shown_name
from shared.protojson.refusal import Found, full, refusal
from shared.protojson.text_limits import require_few_levels

__all__ = ["repeated_members", "unreadable"]


class _Members(tuple[tuple[str, Any], ...]):
    """All members of an object; its construction needs no Python code."""

    __slots__ = ()


_NESTED: Final = (list, _Members)


def unreadable(data: bytes) -> ServiceError:
    """Return the error of a text that orjson refuses: not all of these are malformed."""
    require_few_levels(data)
    try:
        document = json.loads(
            data.decode(),
            parse_int=float,
            parse_constant=_refuse_constant,
            object_pairs_hook=_Members,
        )
        faults = list(islice(_faults(document, ""), MAX_VIOLATIONS + 1))
    except ValueError:  # of the syntax, or not UTF-8
        faults = []
    if faults:
        return refusal(faults)
    return ServiceError(reasons.MALFORMED_JSON, "The text is not valid JSON.")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are not JSON


def _faults(value: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Yield a violation for each number, string and name that orjson refuses."""
    if (fault := _fault_of(value)) is not None:
        yield path, *fault
    elif type(value) is list:
        for index, each in enumerate(value):
            if each and (type(each) in _NESTED or _fault_of(each) is not None):
                yield from _faults(each, f"{path}[{index}]")
    elif type(value) is _Members:
        for name, each in value:
            if (fault := _fault_of(name)) is not None:
                yield _member(path, name), *fault
            yield from _faults(each, _member(path, name))


def _member(path: str, name: str) -> str:
    return f"{path}.{shown_name(name)}" if path else shown_name(name)


def _fault_of(value: Any) -> tuple[str, str] | None:
    """Return rule and message if orjson refuses a number or a string."""
    if type(value) is float and math.isinf(value):
        return "range", "is too large for 64 bits"
    if type(value) is str and not _is_unicode(value):
        return "format", "must be Unicode text"
    return None


def _is_unicode(text: str) -> bool:
    """Return whether a string has no lone surrogate (RFC 8259, section 8.2)."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_Path = tuple[Any, str | int] | None
"""The path of the outer value, and a name or index in it; None for the whole document."""


def repeated_members(data: bytes) -> Found:
    """Return a violation for each repeated member, 21 at most.

    The search ends then, and builds only the paths that it returns: a refusal may cost no more
    than a valid text.
    """
    document = json.loads(data, object_pairs_hook=_Members, parse_int=str, parse_float=str)
    found: Found = []
    _find_duplicates(document, None, found)
    return found


def _find_duplicates(value: Any, path: _Path, found: Found) -> bool:
    """Append a violation for each repeated member in `value`; return whether `found` is full."""
    members: Iterable[tuple[str | int, Any]]
    if type(value) is _Members:
        distinct = dict(value)
        if len(distinct) < len(value) and _note_repeated(value, path, found):
            return True
        members = distinct.items()
    else:
        members = enumerate(value)
    for step, each in members:
        kind = type(each)
        if (
            (kind is _Members or kind is list)
            and each
            and _find_duplicates(each, (path, step), found)
        ):
            return True
    return False


def _note_repeated(members: _Members, path: _Path, found: Found) -> bool:
    seen: set[str] = set()
    for name, _ in members:
        if name in seen:
            found.append((_shown((path, name)), "duplicate", "given more than once"))
            if full(found):
                return True
        seen.add(name)
    return False


def _shown(path: _Path) -> str:
    if path is None:
        return ""
    outer, step = path
    before = _shown(outer)
    if isinstance(step, int):
        return f"{before}[{step}]"
    return f"{before}.{shown_name(step)}" if before else shown_name(step)
