"""Documents that are served as they stand: compressed once, with validators for caches."""

import gzip
import hashlib
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from gateway.conditional import names_tag
from gateway.headers import PAGE
from gateway.media import accepts_gzip

__all__ = ["Document"]

_YEAR: Final = "public, max-age=31536000, immutable"
_ASK: Final = "no-cache"
"""A cache may store the document, and revalidates it before each use."""


class Document:
    """A document with strong ETags, one for each content coding.

    `version` names the content: below `?v=<version>` it never changes, and caches keep it for a
    year.
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

    async def answer(self, request: Request) -> Response:
        """Answer GET and HEAD; 304 if the client has the current version."""
        packed = self._gzip
        if packed is not None and not accepts_gzip(request.headers.get("accept-encoding", "")):
            packed = None
        validators = self._validators(request, f'"{self.version}{"-gzip" if packed else ""}"')
        known = ", ".join(request.headers.getlist("if-none-match"))
        if known and names_tag(known, validators["ETag"]):
            return Response(status_code=304, headers=validators)
        if packed is None:
            return Response(self._body, headers=validators | self._headers)
        coded = {"Content-Encoding": "gzip"}
        return Response(packed, headers=validators | self._headers | coded)

    def _validators(self, request: Request, etag: str) -> dict[str, str]:
        versioned = request.scope["query_string"] == f"v={self.version}".encode()
        validators = {"ETag": etag, "Cache-Control": _YEAR if versioned else _ASK}
        return validators | ({"Vary": "Accept-Encoding"} if self._gzip is not None else {})
