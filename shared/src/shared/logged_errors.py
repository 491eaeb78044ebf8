"""Exceptions in logs, without values: messages of drivers and parsers quote rows and input."""

import traceback
from collections.abc import Iterator
from typing import Final

from shared.errors import ServiceError

__all__ = ["LoggableError", "describe", "render"]


class LoggableError(Exception):
    """An error with a message without stored values, which is written to the log."""


_MESSAGE_SHOWN: Final = (
    AttributeError,
    ImportError,
    LoggableError,
    NameError,
    OSError,
    RuntimeError,
    ServiceError,
    TypeError,
)
"""Exceptions whose messages have names of code, addresses and reasons, but no stored values."""
_CODES: Final = ("sqlstate", "code")
"""Attributes with the code of a driver's error."""
_MAX_MESSAGE: Final = 500
"""Characters of a message."""
_MAX_CHAIN: Final = 5
"""Exceptions of a chain, the last one first."""


def describe(error: BaseException) -> str:
    """Return the type of an exception, with its code and its message if it has no values."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    if isinstance(error, _MESSAGE_SHOWN):
        return f"{kind}: {str(error)[:_MAX_MESSAGE]}"
    codes = (getattr(error, name, None) for name in _CODES)
    code = next((each for each in codes if isinstance(each, int | str)), None)
    return kind if code is None else f"{kind} ({code})"


def render(error: BaseException) -> str:
    """Return the tracebacks of an exception and its causes, each with its `describe`."""
    return "\n".join(_lines(error))


def _lines(error: BaseException | None) -> Iterator[str]:
    for _ in range(_MAX_CHAIN):
        if error is None:
            return
        if error.__traceback__ is not None:
            yield "Traceback (most recent call last):"
            yield from (line.rstrip() for line in traceback.format_tb(error.__traceback__))
        yield describe(error)
        for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
            yield from _lines(inner)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
