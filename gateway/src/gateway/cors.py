"""Access from web pages of other origins (Fetch standard, section 3.3, CORS protocol)."""

from collections.abc import Sequence
from typing import Final

from gateway.response_headers import Header

__all__ = ["Cors"]

_MAX_AGE_SECONDS: Final = 600
"""How long browsers may cache the response to a preflight."""
_REQUEST_HEADERS: Final = (
    b"Accept, Authorization, Connect-Protocol-Version, Connect-Timeout-Ms, Content-Type,"
    b" Idempotency-Key, If-Match, If-None-Match, Request-Timeout, traceparent"
)
_EXPOSED: Final = (
    b"ETag, Idempotency-Replayed, Location, RateLimit, RateLimit-Policy, Retry-After, Trace-Id"
)


class Cors:
    """Origins of web pages that may use the gateway, such as `https://app.example.com`.

    Origins are compared exactly. The gateway uses no cookies, so credentials are never allowed.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)
        self.vary: Header = (b"vary", b"Authorization, Origin" if origins else b"Authorization")
        """For responses that depend on the caller."""
        self.vary_of_public: tuple[Header, ...] = ((b"vary", b"Origin"),) if origins else ()
        """For responses that are the same for every caller."""

    def origin_allowed(self, origin: str) -> bool:
        """Return whether a page of this origin may use the gateway, over HTTP or a WebSocket."""
        return origin.encode("latin-1", "replace") in self._origins

    def headers(self, origin: bytes | None) -> tuple[Header, ...]:
        """Return the headers that allow a page of `origin` to read a response; none if refused."""
        if origin not in self._origins:
            return ()
        return (
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _EXPOSED),
        )

    def preflight(self, origin: bytes | None, verbs: bytes) -> tuple[Header, ...]:
        """Return the headers that allow a page of `origin` to send requests with these verbs."""
        if origin not in self._origins:
            return ()
        return (
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-methods", verbs),
            (b"access-control-allow-headers", _REQUEST_HEADERS),
            (b"access-control-max-age", b"%d" % _MAX_AGE_SECONDS),
        )
