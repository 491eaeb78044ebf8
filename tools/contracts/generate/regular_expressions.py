"""Regular expressions in documents: RE2 in the contract, ECMA-262 in JSON Schema."""

import re
from typing import Final

__all__ = ["FORMATS", "WELL_KNOWN", "escaped", "is_portable", "literal"]

_SYNTAX: Final = r"\^\$\\.*+?()\[\]{}|/"
"""The characters, inside brackets, that ECMA-262 lets a backslash precede (Unicode mode)."""
_HEXADECIMAL: Final = "x[0-9A-Fa-f]{2}"
_MEMBER: Final = rf"\\(?:[{_SYNTAX}tnrfv-]|[dDwWs](?!-[^\]])|{_HEXADECIMAL})|\[(?!:)|[^\\\[\]]"
"""A part of a class: `[...]`."""
_QUANTIFIER: Final = r"(?:[*+?]|\{[0-9]+(?:,[0-9]*)?\})\??(?![*+?{])"
_PORTABLE: Final = re.compile(
    rf"(?:\\(?:[{_SYNTAX}dDwWsStnrfv]|{_HEXADECIMAL})|\[\^?(?:{_MEMBER})+\]"
    rf"|(?:\^|\$|\\b)(?![*+?{{])|{_QUANTIFIER}|\((?:\?:|(?![?*]))|[^\\\[\]{{}}(^$*+?])*"
)
"""Syntax that RE2 (used by buf.validate) and ECMA-262 share. It has no flags, named classes, braces
as characters, repeated assertions, or escapes of further punctuation. It lacks \\B, which in RE2
also matches between the bytes of a character.
"""
_TOKEN: Final = re.compile(r"\\.|\[\^?(?:\\.|[^\\\]])*\]|.", re.DOTALL)
_SPACES: Final = r"\t\n\f\r "
_IN_ECMA: Final = {".": r"[^\n]", r"\s": f"[{_SPACES}]", r"\S": f"[^{_SPACES}]"}
"""Parts that match other characters in ECMA-262 than in RE2: more spaces, more ends of a line."""
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
    return _PORTABLE.fullmatch(pattern) is not None


def literal(text: str) -> str:
    """Return the pattern of a text; `re.escape` escapes more than ECMA-262 permits."""
    return re.sub(rf"[{_SYNTAX}]", r"\\\g<0>", text)


def escaped(pattern: str) -> str:
    """Return a portable pattern in ECMA-262, with escapes for its non-ASCII characters."""
    text = _TOKEN.sub(lambda found: _IN_ECMA.get(found[0]) or _in_class(found[0]), pattern)
    return "".join(c if c.isascii() or ord(c) > 0xFFFF else f"\\u{ord(c):04x}" for c in text)


def _in_class(token: str) -> str:
    if not token.startswith("["):
        return token
    return re.sub(r"\\.", lambda found: _SPACES if found[0] == r"\s" else found[0], token)
