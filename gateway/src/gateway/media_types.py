"""Media types and content codings (RFC 9110, sections 8 and 12.5)."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from gateway.problems import HttpError
from gateway.request_headers import Headers
from postbus import reasons

__all__ = [
    "BINARY",
    "JSON",
    "MERGE_PATCH",
    "NDJSON",
    "PROTOBUF",
    "accepted",
    "accepts_gzip",
    "has_content",
    "require_media_type",
    "require_uncoded",
]

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"
"""A JSON merge patch (RFC 7396)."""
PROTOBUF: Final = "application/protobuf"
"""The binary format of protobuf, as it is registered at IANA."""
BINARY: Final = (PROTOBUF, "application/x-protobuf")
"""PROTOBUF and its older name, which OpenTelemetry, Spring and Google's APIs use."""
NDJSON: Final = "application/x-ndjson"
"""A stream: one line of JSON for each message."""
_MAX_BYTES: Final = 2048
"""Longest Accept or Accept-Encoding: its 1,000 members are read in 1 to 2 ms."""
_WEIGHT: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.?)*"?')
"""The value of a parameter, which may contain commas and semicolons."""


def accepted(headers: Headers, offered: Sequence[str]) -> str:
    """Return the media type for the response that Accept prefers, of several the first offered.

    Raises 406 if Accept excludes all of them, or is longer than 2,048 bytes.
    """
    accept = headers.get(b"accept")
    if accept is None or accept == b"*/*":
        return offered[0]
    text = accept.decode("latin-1").lower()
    if text in offered:
        return text
    if len(text) > _MAX_BYTES:
        raise HttpError(reasons.NOT_ACCEPTABLE, f"Accept is limited to {_MAX_BYTES} bytes.")
    ranges = _weights(text)
    best = max(offered, key=lambda each: _weight(ranges, each))
    if _weight(ranges, best):
        return best
    raise HttpError(
        reasons.NOT_ACCEPTABLE,
        f"The response is {' or '.join(offered[:2])}, which Accept excludes.",
    )


def _weight(ranges: Mapping[str, float], media_type: str) -> float:
    """Return the weight of the most specific range of Accept that matches (section 12.5.1)."""
    family = media_type.partition("/")[0] + "/*"
    matching = [ranges[each] for each in (media_type, family, "*/*") if each in ranges]
    return matching[0] if matching else float(not ranges)


def _weights(field: str) -> dict[str, float]:
    """Return the greatest weight of each member of a field; 1 if it is missing or malformed.

    All other parameters are ignored: the gateway offers each type in one form. A member with
    parameters and the weight 0 excludes only another form.
    """
    found: dict[str, float] = {}
    for member in _QUOTED.sub("", field).split(","):
        name, *parameters = (part.strip() for part in member.split(";"))
        text = next((each[2:] for each in parameters if each.startswith("q=")), "1")
        weight = float(text) if _WEIGHT.fullmatch(text) else 1.0
        if name and (weight or len(parameters) == 1):
            found[name] = max(weight, found.get(name, 0.0))
    return found


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether a response may be compressed with gzip (section 12.5.3)."""
    if len(accept_encoding) > _MAX_BYTES:
        return False
    codings = _weights(accept_encoding.lower())
    return codings.get("gzip", codings.get("*", 0.0)) > 0


def has_content(headers: Headers) -> bool:
    """Return whether the request has a body of at least one byte, or of unknown length."""
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def require_uncoded(headers: Headers) -> None:
    """Raise 415 if the body has a content coding."""
    coding = headers.get(b"content-encoding", b"identity")
    if coding.strip().lower() not in (b"identity", b""):
        raise HttpError(
            reasons.CONTENT_ENCODING_UNSUPPORTED,
            "Send the body without a content coding.",
            headers={"Accept-Encoding": "identity"},
        )


def require_media_type(headers: Headers, supported: Sequence[str], *, patch: bool) -> str:
    """Return the media type of a body; 415 unless it is supported and has no content coding.

    The response to a `patch` names the supported types in Accept-Patch (RFC 5789, section 3.1).
    """
    require_uncoded(headers)
    given = headers.get(b"content-type", b"").partition(b";")[0].decode("latin-1").strip().lower()
    if given in supported:
        return given
    simple = [each for each in (JSON, PROTOBUF) if each in supported]
    raise HttpError(
        reasons.NOT_JSON,
        f"Send the body as {' or '.join(simple)}.",
        headers={"Accept-Patch" if patch else "Accept": ", ".join(supported)},
    )
