"""Regular expressions in documents: RE2 in the contract, ECMA-262 in JSON Schema."""

import re
from typing import Final

__all__ = ["FORMATS", "WELL_KNOWN", "escaped", "is_portable"]

_NOT_PORTABLE: Final = re.compile(r"\(\?[^:]|\\[AzQECpP]|\[\[:")
"""Syntax of RE2 (used by buf.validate) that ECMA-262 lacks: flags, anchors, classes."""
_LABEL: Final = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HEX: Final = "[0-9a-fA-F]"
_NAME: Final = r"[A-Za-z_][A-Za-z_0-9]*(?:\.[A-Za-z_][A-Za-z_0-9]*)*"
WELL_KNOWN: Final = {
    # the pattern of the HTML standard, as in buf.validate
    "email": f"^[a-zA-Z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_LABEL}(?:\\.{_LABEL})*$",
    "uuid": f"^{_HEX}{{8}}-(?:{_HEX}{{4}}-){{3}}{_HEX}{{12}}$",
    "tuuid": f"^{_HEX}{{32}}$",
    "ulid": "^[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}$",
    "protobuf_fqn": f"^{_NAME}$",
    "protobuf_dot_fqn": f"^\\.{_NAME}$",
}
"""Patterns of the well-known string rules of buf.validate."""
FORMATS: Final = {  # not email: the format of JSON Schema is narrower
    "uuid": "uuid",
    "hostname": "hostname",
    "ipv4": "ipv4",
    "ipv6": "ipv6",
    "uri": "uri",
    "uri_ref": "uri-reference",
}
"""Formats of JSON Schema for the well-known string rules of buf.validate."""


def is_portable(pattern: str) -> bool:
    """Return whether a pattern of RE2 means the same in JSON Schema (ECMA-262)."""
    return not _NOT_PORTABLE.search(pattern)


def escaped(pattern: str) -> str:
    """Return a pattern with escapes of ECMA-262 for its non-ASCII characters."""
    return "".join(c if c.isascii() or ord(c) > 0xFFFF else f"\\u{ord(c):04x}" for c in pattern)
