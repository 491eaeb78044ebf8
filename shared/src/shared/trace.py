"""W3C Trace Context, level 1: the `traceparent` of a call (https://www.w3.org/TR/trace-context)."""

import random
import re

__all__ = ["child_traceparent", "new_traceparent", "trace_id", "valid_traceparent"]

_random = random.Random()  # noqa: S311  # ids, not secrets
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")


def new_traceparent() -> str:
    """Return the traceparent of a new, sampled trace."""
    ids = f"{_random.getrandbits(192):048x}"
    return f"00-{ids[:32]}-{ids[32:]}-01"


def child_traceparent(parent: str) -> str:
    """Return a new span of the trace of `parent`; of a new trace if `parent` is invalid."""
    match = _TRACEPARENT.fullmatch(parent)
    if match is None:
        return new_traceparent()
    return f"00-{match[1]}-{_random.getrandbits(64):016x}-{match[2]}"


def valid_traceparent(value: str) -> str:
    """Return `value`, or the traceparent of a new trace if `value` is invalid."""
    return value if _TRACEPARENT.fullmatch(value) else new_traceparent()


def trace_id(traceparent: str) -> str:
    """Return the 32 hex digits of the trace; empty if `traceparent` is invalid."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return match[1] if match else ""
