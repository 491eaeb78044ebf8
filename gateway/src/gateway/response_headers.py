"""Constant header fields of responses, as bytes.

The choice follows the OWASP Secure Headers Project and its REST Security Cheat Sheet.
`Strict-Transport-Security` depends on how the gateway is reached: see `transport_security`.
"""

from typing import Final

__all__ = [
    "JSON",
    "NO_CACHE",
    "NO_STORE",
    "PAGE",
    "PRIVATE",
    "PROBLEM",
    "REPLAYED",
    "SECURITY",
    "Header",
    "transport_security",
]

Header = tuple[bytes, bytes]
"""A header field in ASGI's form: lower-case name and value."""

SECURITY: Final[tuple[Header, ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""Headers of every response."""
PAGE: Final[tuple[Header, ...]] = (
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)
"""Further headers of HTML pages."""
JSON: Final[Header] = (b"content-type", b"application/json")
PROBLEM: Final[Header] = (b"content-type", b"application/problem+json")
NO_STORE: Final[Header] = (b"cache-control", b"no-store")
NO_CACHE: Final[Header] = (b"cache-control", b"no-cache")
PRIVATE: Final[Header] = (b"cache-control", b"private, no-cache")
"""For a response to one user: no shared cache may store it (RFC 9111, section 5.2.2.7)."""
REPLAYED: Final[Header] = (b"idempotency-replayed", b"true")


def transport_security(seconds: int) -> list[tuple[str, str]]:
    """Return the header that makes browsers use only HTTPS for `seconds` (RFC 6797); none for 0.

    For uvicorn's setting `headers`, which adds it to every response.
    """
    value = f"max-age={seconds}; includeSubDomains"
    return [("strict-transport-security", value)] if seconds else []
