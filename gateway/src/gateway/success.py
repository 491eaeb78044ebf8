"""The answer to a call that succeeded, with the headers that describe it."""

import re
from typing import Any, Final
from urllib.parse import quote

import structlog
from google.protobuf.message import Message

from gateway.conditional import Conditions, entity_tag, is_safe, version_in
from gateway.cors import Cors
from gateway.headers import JSON, NO_STORE, SECURITY, Header
from gateway.responses import Answer
from gateway.transcoding import Transcoder
from shared.errors import ServiceError, internal

__all__ = ["Success"]

_log = structlog.get_logger()
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]+").fullmatch
_REPLAYED: Final[Header] = (b"idempotency-replayed", b"true")
_SHARED: Final[Header] = (b"cache-control", b"no-cache")
_PRIVATE: Final[Header] = (b"cache-control", b"private, no-cache")
"""Of an answer to one user: no shared cache may store it (RFC 9111, section 5.2.2.7)."""


class Success:
    """Writes the answers of one binding; headers that are always the same are prepared."""

    def __init__(self, transcoder: Transcoder, cors: Cors) -> None:
        method, rule = transcoder.method, transcoder.rule
        self._transcoder = transcoder
        self._status = rule.status
        self._tagged = rule.status in (200, 201) and (bool(method.version) or is_safe(method))
        self._location = rule.location
        kept = (NO_STORE, NO_STORE) if method.secret_response else (_SHARED, _PRIVATE)
        self._headers = tuple((each, cors.vary, *SECURITY) for each in kept)

    def headers(self, trace_id: str, *, private: bool) -> list[Header]:
        """Return the headers of every successful answer; `private` if the caller has a token."""
        return [(b"trace-id", trace_id.encode()), *self._headers[private]]

    def answer(
        self, payload: bytes, conditions: Conditions, headers: list[Header], *, replayed: bool
    ) -> Answer:
        """Return the answer that carries a response, or 304 if the client has it already.

        Appends to `headers`. `replayed` tells whether the operation had been done before. Raises
        412 if a condition does not hold.
        """
        message = self._read(payload)
        content = self._transcoder.write(message)
        if replayed:
            headers.append(_REPLAYED)
        if not content:
            return Answer(204, headers)
        if self._tagged:
            version = version_in(self._transcoder.method, message)
            conditions.require(version)
            etag = entity_tag(content, version)
            headers.append((b"etag", etag.encode()))
            if conditions.know(etag):
                return Answer(304, headers)
        if self._location:
            headers.append((b"location", self._place(message)))
        headers += (JSON, (b"content-length", b"%d" % len(content)))
        return Answer(self._status, headers, content)

    def etag(self, payload: bytes) -> str:
        """Return the ETag of an answer."""
        message = self._read(payload)
        version = version_in(self._transcoder.method, message)
        return entity_tag(self._transcoder.write(message), version)

    def _read(self, payload: bytes) -> Message:
        try:
            return self._transcoder.response(payload)
        except ServiceError:  # a fault of the worker, which may have changed something
            _log.warning("reply.malformed", method=self._transcoder.method.name)
            raise internal() from None

    def _place(self, message: Any) -> bytes:
        """Return the path of the resource in a response (RFC 9110, section 15.3.2)."""
        path, *fields = self._location
        for name in fields[:-1]:
            message = getattr(message, name)
        name = str(getattr(message, fields[-1]))
        if not _UNRESERVED(name):
            name = quote(name, safe="")
        return f"{path}/{name}".encode()
