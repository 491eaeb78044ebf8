"""Regular expressions of RE2 in documents, whose readers use ECMA-262."""

import re
from typing import Final

__all__ = ["escaped", "is_portable"]

_NOT_PORTABLE: Final = re.compile(r"\(\?[^:]|\\[AzQECpP]|\[\[:")
"""Syntax of RE2 (used by buf.validate) that ECMA-262 lacks: flags, anchors, classes."""


def is_portable(pattern: str) -> bool:
    """Return whether a pattern of RE2 means the same in JSON Schema (ECMA-262)."""
    return not _NOT_PORTABLE.search(pattern)


def escaped(pattern: str) -> str:
    """Return a pattern with escapes of ECMA-262 for its non-ASCII characters."""
    return "".join(c if c.isascii() or ord(c) > 0xFFFF else f"\\u{ord(c):04x}" for c in pattern)
