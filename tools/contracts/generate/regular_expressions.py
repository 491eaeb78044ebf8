"""Regular expressions for what JSON Schema's keywords can't say of a string."""

import re
from collections.abc import Iterator
from typing import Final

__all__ = ["escaped", "integers", "is_portable"]

_NOT_PORTABLE: Final = re.compile(r"\(\?[^:]|\\[AzQECpP]|\[\[:")
"""What RE2, which buf.validate speaks, has and ECMA-262 has not: flags, anchors, classes."""


def is_portable(pattern: str) -> bool:
    """Whether a pattern of RE2 means the same to JSON Schema (ECMA-262)."""
    return not _NOT_PORTABLE.search(pattern)


def escaped(pattern: str) -> str:
    """Return a pattern whose invisible and other non-ASCII characters are escapes of ECMA-262."""
    return "".join(c if c.isascii() or ord(c) > 0xFFFF else f"\\u{ord(c):04x}" for c in pattern)


def integers(low: int, high: int) -> str:
    """Return a pattern of the integers from `low` to `high`, in decimal without leading zeros."""
    parts: list[str] = []
    if low < 0:
        parts += [f"-(?:{'|'.join(_naturals(max(-high, 1), -low))})"]
    if high >= 0:
        parts += _naturals(max(low, 0), high)
    return f"^(?:{'|'.join(parts)})$"


def _naturals(low: int, high: int) -> Iterator[str]:
    """Zero, the numbers of digits of which all are in, and the rest by their digits."""
    if low == 0:
        yield "0"
        low = 1
    lengths = range(len(str(low)), len(str(high)) + 1 if high else 0)
    whole = [n for n in lengths if low <= 10 ** (n - 1) and 10**n - 1 <= high]
    for digits in (n for n in lengths if n not in whole):
        first, last = max(low, 10 ** (digits - 1)), min(high, 10**digits - 1)
        yield from _same_length(str(first), str(last))
    if whole:
        yield f"[1-9][0-9]{{{whole[0] - 1},{whole[-1] - 1}}}"


def _same_length(low: str, high: str) -> Iterator[str]:
    if not low:
        yield ""
    elif set(low) == {"0"} and set(high) == {"9"}:
        yield _digits(len(low))
    elif low[0] == high[0]:
        yield from (low[0] + rest for rest in _same_length(low[1:], high[1:]))
    else:
        yield from _unequal(low, high)


def _unequal(low: str, high: str) -> Iterator[str]:
    first, last, rest = int(low[0]), int(high[0]), len(low) - 1
    if set(low[1:]) - {"0"}:
        yield from (low[0] + each for each in _same_length(low[1:], "9" * rest))
        first += 1
    above = bool(set(high[1:]) - {"9"})
    last -= above
    if first <= last:
        yield (f"[{first}-{last}]" if first < last else str(first)) + _digits(rest)
    if above:
        yield from (high[0] + each for each in _same_length("0" * rest, high[1:]))


def _digits(count: int) -> str:
    return "" if count == 0 else "[0-9]" if count == 1 else f"[0-9]{{{count}}}"
