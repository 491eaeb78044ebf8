"""Media types and content codings (RFC 9110, sections 8 and 12.5)."""

from typing import Final

from gateway.problems import HttpError
from gateway.request_headers import Headers
from postbus import reasons

__all__ = ["accepts_gzip", "has_content", "require_acceptable", "require_json", "require_uncoded"]

_PATCHES: Final = (b"application/json", b"application/merge-patch+json")
_BODIES: Final = (b"application/json",)


def require_acceptable(headers: Headers, media_type: str) -> None:
    """Raise 406 if Accept excludes the media type, the only one of the response."""
    accept = headers.get(b"accept")
    if accept is None or accept == b"*/*" or accept == media_type.encode():
        return
    if not _accepts(accept.decode("latin-1"), media_type):
        raise HttpError(
            reasons.NOT_ACCEPTABLE,
            f"The response is {media_type}, which Accept excludes.",
        )


def _accepts(accept: str, media_type: str) -> bool:
    """Return whether the most specific matching range has a weight above 0 (section 12.5.1)."""
    ranges = dict(map(_range, accept.lower().split(",")))
    ranges.pop("", None)
    family = media_type.partition("/")[0] + "/*"
    matching = [ranges[each] for each in (media_type, family, "*/*") if each in ranges]
    return matching[0] if matching else not ranges


def _range(text: str) -> tuple[str, bool]:
    """Return a media range without parameters, and whether its weight is above 0."""
    kind, *parameters = (part.strip() for part in text.split(";"))
    weight = next((each[2:] for each in parameters if each.startswith("q=")), "1")
    return kind, bool(weight.strip("0."))


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether a response may be compressed with gzip (section 12.5.3)."""
    codings = dict(map(_range, accept_encoding.lower().split(",")))
    return codings.get("gzip", codings.get("*", False))


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


def require_json(headers: Headers, *, patch: bool) -> None:
    """Raise 415 unless the body is uncompressed JSON.

    With `patch`, a merge patch (RFC 7396) is accepted too.
    """
    require_uncoded(headers)
    accepted = _PATCHES if patch else _BODIES
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() not in accepted:
        names = b", ".join(accepted).decode()
        header = "Accept-Patch" if patch else "Accept"
        raise HttpError(
            reasons.NOT_JSON,
            "Send the body as application/json.",
            headers={header: names},
        )
