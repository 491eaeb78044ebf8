"""Static documents: compressed once, with validators for caches."""

import gzip
import hashlib
import struct
import zlib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from gateway.conditional import contains_tag
from gateway.media_types import accepts_gzip
from gateway.response_headers import PAGE

__all__ = ["HTML", "SELF_CONTAINED", "AddressedDocument", "StaticDocument", "page_text"]

HTML: Final = "text/html; charset=utf-8"
SELF_CONTAINED: Final = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of a page that loads nothing and is in no frame."""
_IMMUTABLE: Final = "public, max-age=31536000, immutable"
_REVALIDATED: Final = "no-cache"
"""A cache may store the document, but revalidates it before each use."""
_GZIP_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""Of a member without name and time (RFC 1952, section 2.3)."""


@cache
def page_text(name: str) -> str:
    """Return the text of a file in the folder `pages`."""
    return files("gateway").joinpath("pages", name).read_text()


class _Content(NamedTuple):
    version: str
    body: bytes
    gzip: bytes | None
    """The compressed body, if it is shorter."""


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
        version, body, packed = self._content(request)
        vary = {} if packed is None else {"Vary": "Accept-Encoding"}
        if packed is not None and not accepts_gzip(request.headers.get("accept-encoding", "")):
            packed = None
        etag = f'"{version}{"-gzip" if packed else ""}"'
        validators = {"ETag": etag, "Cache-Control": self._lifetime(request)} | vary
        if_none_match = ", ".join(request.headers.getlist("if-none-match"))
        if if_none_match and contains_tag(if_none_match, validators["ETag"]):
            return Response(status_code=304, headers=validators)
        if packed is None:
            return Response(body, headers=validators | self._headers)
        coded = {"Content-Encoding": "gzip"}
        return Response(packed, headers=validators | self._headers | coded)

    def _content(self, _request: Request) -> _Content:
        return _Content(self.version, self._body, self._gzip)

    def _lifetime(self, request: Request) -> str:
        versioned = request.scope["query_string"] == f"v={self.version}".encode()
        return _IMMUTABLE if versioned else _REVALIDATED


class AddressedDocument(StaticDocument):
    """A document with the address of the gateway, as the client has written it.

    `placeholder` occurs once in `body`; `address` returns the text that replaces it. Only this text
    is compressed for a request: both parts of the document around it are compressed once.
    """

    def __init__(
        self, body: bytes, media_type: str, placeholder: bytes, address: Callable[[Request], str]
    ) -> None:
        super().__init__(body, media_type, compressed=False)
        self._before, self._after = body.split(placeholder)
        self._packed = _deflate(self._before), _deflate(self._after, zlib.Z_FINISH)
        self._address = address

    def _content(self, request: Request) -> _Content:
        text = self._address(request).encode()
        body = self._before + text + self._after
        before, after = self._packed
        end = struct.pack("<LL", zlib.crc32(body), len(body))
        packed = _GZIP_HEADER + before + _deflate(text) + after + end
        version = f"{self.version}-{hashlib.sha256(text).hexdigest()[:16]}"
        return _Content(version, body, packed)

    def _lifetime(self, _request: Request) -> str:
        return _REVALIDATED


def _deflate(part: bytes, flush: int = zlib.Z_FULL_FLUSH) -> bytes:
    """Return a part of a raw deflate stream: it refers to no bytes before it."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(part) + compressor.flush(flush)
