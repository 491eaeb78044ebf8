"""HTTP responses of successful calls: status, ETag, caching, Location and replay headers."""

import re
from operator import attrgetter
from typing import Final
from urllib.parse import quote

from google.protobuf.message import Message

from gateway.conditional import Conditions, entity_tag
from gateway.cors import Cors
from gateway.raw_bodies import RAW_POLICY, media_type_header
from gateway.response_headers import NO_CACHE, NO_STORE, PRIVATE, REPLAYED, SECURITY, Header
from gateway.responses import HttpResponse
from gateway.transcoding import Transcoder

__all__ = ["SuccessResponses"]

_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]+").fullmatch
_NO_CONTENT: Final = 204
_EMPTY: Final[Header] = (b"content-length", b"0")


class SuccessResponses:
    """Builds the success responses of one binding; constant headers are prepared."""

    def __init__(self, transcoder: Transcoder, cors: Cors) -> None:
        method, rule = transcoder.method, transcoder.rule
        self._transcoder = transcoder
        self._status = rule.status
        self._is_raw = transcoder.raw_response is not None
        self._tagged = rule.status in (200, 201) and (
            bool(method.version) or not method.has_side_effects
        )
        self._version_of = attrgetter(".".join(method.version)) if method.version else None
        self._collection, *name = rule.location or ("",)
        self._name_of = attrgetter(".".join(name)) if name else None
        cache = (NO_STORE, NO_STORE) if method.secret_response else (NO_CACHE, PRIVATE)
        types = transcoder.response_types if transcoder.has_content and not self._is_raw else ()
        self.media_types = types
        """The media types that Accept can choose from; empty if it is ignored."""
        self._kinds: dict[str, Header] = {
            each: (b"content-type", each.encode()) for each in self.media_types
        }
        vary = (b"vary", cors.vary[1] + b", Accept") if len(types) > 1 else cors.vary
        self.headers = tuple((each, vary, *SECURITY) for each in cache)
        """The headers of every success response: without a token, and with one."""

    def build(
        self,
        message: Message,
        conditions: Conditions | None,
        headers: list[Header],
        *,
        media_type: str,
        replayed: bool,
    ) -> HttpResponse:
        """Return the response with a message, or 304 if If-None-Match contains its ETag.

        Appends to `headers`. `media_type` is one of `media_types`. `replayed`: the message is the
        stored reply of an earlier execution.
        Raises 412 if If-Match does not accept the version of the message.
        """
        if replayed:
            headers.append(REPLAYED)
        if not self._transcoder.has_content:
            if self._status != _NO_CONTENT:
                headers.append(_EMPTY)
            return HttpResponse(self._status, headers)
        content = self._transcoder.write(message, media_type)
        if self._tagged:
            version = self._version_of(message) if self._version_of else None
            etag = entity_tag(content, version)
            headers.append((b"etag", etag.encode()))
            if conditions is not None:
                conditions.check_if_match(version)
                if conditions.matches_if_none_match(etag):
                    return HttpResponse(304, headers)
        if self._name_of:
            headers.append((b"location", self._location(str(self._name_of(message)))))
        if self._is_raw:
            kind = media_type_header(self._transcoder.raw_body(message).content_type)
            headers.append(RAW_POLICY)
        else:
            kind = self._kinds[media_type]
        headers += (kind, (b"content-length", b"%d" % len(content)))
        return HttpResponse(self._status, headers, content)

    def etags(self, message: Message) -> list[str]:
        """Return the ETag of a response in each of its media types."""
        version = self._version_of(message) if self._version_of else None
        written = {self._transcoder.write(message, each) for each in self.media_types or ("",)}
        return [entity_tag(content, version) for content in written]

    def _location(self, name: str) -> bytes:
        """Return the path of the created resource (RFC 9110, section 15.3.2)."""
        if not _UNRESERVED(name):
            name = quote(name, safe="")
        return f"{self._collection}/{name}".encode()
