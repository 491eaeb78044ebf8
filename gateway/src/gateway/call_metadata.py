"""Metadata of calls at the gateway: which header fields reach a worker, and which come back."""

from collections.abc import Iterable, Sequence
from typing import Final

from gateway.problems import HttpError
from gateway.response_headers import Header
from postbus import reasons
from shared.metadata import MAX_METADATA_BYTES, Metadata, OutgoingMetadata

__all__ = ["RequestMetadata", "header_fields"]

_OWN_PREFIXES: Final = (
    *("access-control-", "connect-", "content-", "cross-origin-", "grpc-", "proxy-"),
    *("ratelimit", "sec-", "trailer"),
)
_OWN_NAMES: Final = frozenset(
    {
        *("authorization", "cache-control", "connection", "cookie", "date", "etag", "host"),
        *("idempotency-replayed", "keep-alive", "location", "permissions-policy"),
        *("referrer-policy", "retry-after", "server", "set-cookie", "strict-transport-security"),
        *("te", "trace-id", "transfer-encoding", "upgrade", "vary", "www-authenticate"),
        *("x-content-type-options", "x-frame-options"),
    }
)
"""Names with these prefixes, and these names, are the gateway's: no worker sets them."""


class RequestMetadata:
    """The header fields of requests that are passed on to workers, by an allow-list."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(name.lower().encode() for name in names)
        """Names in lower case; empty for none."""

    def read(self, lines: Sequence[Header]) -> Metadata:
        """Return the fields with these names, each line as one value.

        Raises 400 METADATA_INVALID if they are not ASCII, or larger than 8 KiB together.
        """
        found = OutgoingMetadata()
        try:
            for name, value in lines:
                if name in self.names:
                    found.add(name.decode(), value.decode("latin-1"))
        except ValueError:
            raise HttpError(
                reasons.METADATA_INVALID,
                f"The header fields for services take ASCII, at most {MAX_METADATA_BYTES} bytes.",
            ) from None
        return found.values


def header_fields(metadata: Metadata, prefix: str = "") -> list[Header]:
    """Return metadata of a reply as header fields; the names of the gateway are left out."""
    return [
        (f"{prefix}{name}".encode(), value.encode())
        for name, values in metadata.items()
        if name not in _OWN_NAMES and not name.startswith(_OWN_PREFIXES)
        for value in values
    ]
