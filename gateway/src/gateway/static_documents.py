"""Static documents: compressed once, with validators for caches."""

import gzip
import hashlib
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from gateway.conditional import contains_tag
from gateway.media_types import accepts_gzip
from gateway.response_headers import PAGE

__all__ = ["StaticDocument"]

_IMMUTABLE: Final = "public, max-age=31536000, immutable"
_REVALIDATED: Final = "no-cache"
"""A cache may store the document, but revalidates it before each use."""


class StaticDocument:
    """A static document with a strong ETag for each content coding.

    `version` is a hash of the content. The URL with `?v=<version>` always has this content, so
    that caches keep it for a year.
    """

    def __init__(
        self,
        body: bytes,
        media_type: str,
        headers: dict[str, str] | None = None,
        *,
        compressed: bool = True,
    ) -> None:
        self.version = hashlib.sha256(body).hexdigest()[:32]
        self._body = body
        packed = gzip.compress(body, mtime=0) if compressed else body
        self._gzip = packed if len(packed) < len(body) else None
        self._headers = {"Content-Type": media_type, **(headers or {})}
        if media_type.startswith("text/html"):
            self._headers |= {name.decode(): value.decode() for name, value in PAGE}

    async def serve(self, request: Request) -> Response:
        """Return the response to GET or HEAD; 304 if If-None-Match contains the current ETag."""
        packed = self._gzip
        if packed is not None and not accepts_gzip(request.headers.get("accept-encoding", "")):
            packed = None
        validators = self._validators(request, f'"{self.version}{"-gzip" if packed else ""}"')
        if_none_match = ", ".join(request.headers.getlist("if-none-match"))
        if if_none_match and contains_tag(if_none_match, validators["ETag"]):
            return Response(status_code=304, headers=validators)
        if packed is None:
            return Response(self._body, headers=validators | self._headers)
        coded = {"Content-Encoding": "gzip"}
        return Response(packed, headers=validators | self._headers | coded)

    def _validators(self, request: Request, etag: str) -> dict[str, str]:
        versioned = request.scope["query_string"] == f"v={self.version}".encode()
        validators = {"ETag": etag, "Cache-Control": _IMMUTABLE if versioned else _REVALIDATED}
        return validators | ({"Vary": "Accept-Encoding"} if self._gzip is not None else {})
