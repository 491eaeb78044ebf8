"""The framing of a body: by Content-Length or in chunks (RFC 9112, sections 6 and 7)."""

import re
from collections.abc import Callable
from typing import Final, Protocol

from gateway.http1.head_fields import TOKEN
from gateway.problems import HttpError
from postbus import reasons
from postbus_runtime.reasons import Reason
from shared.errors import Outcome

__all__ = ["EXTENSION_BYTES", "STEP_CHUNKS", "TRAILER_BYTES", "Body", "ChunkedBody", "SizedBody"]

EXTENSION_BYTES: Final = 8 * 1024
"""Most bytes of chunk extensions in one body."""
TRAILER_BYTES: Final = 8 * 1024
"""Most bytes of trailer fields after one body."""
STEP_CHUNKS: Final = 500
"""Most chunks that are parsed before other tasks run: about a millisecond."""

# The size has at most 8 hexadecimal digits. Extensions are ignored (RFC 9112, section 7.1.1).
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})((?:[ \t]*;[\t -~\x80-\xff]*)?)\r\n")
_SIZE_BEGINNING: Final = re.compile(rb"(?:[0-9A-Fa-f]{1,8}(?:[ \t]*|[ \t]*;[\t -~\x80-\xff]*)\r?)?")
_TRAILER: Final = re.compile(TOKEN + rb":[\t -~\x80-\xff]*\r\n")


class Body(Protocol):
    """The parser of a request's body."""

    complete: bool
    """Whether the body has ended."""
    paused: bool
    """Whether `read` has stopped early, so that other tasks run; call it again soon."""

    def read(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the content at the beginning of `data`, and the rest of `data`.

        Pass the rest again, followed by further bytes. HttpError 400 or 431 if the framing is
        invalid or exceeds its bounds, with outcome UNKNOWN: the application may have begun.
        """
        ...


class SizedBody:
    """A body with a Content-Length."""

    __slots__ = ("_remaining", "complete", "paused")

    def __init__(self, length: int) -> None:
        self.complete = False
        self.paused = False
        self._remaining = length

    def read(self, data: bytes) -> tuple[bytes, bytes]:
        """See Body."""
        size = len(data)
        if size < self._remaining:
            self._remaining -= size
            return data, b""
        self.complete = True
        return data[: self._remaining], data[self._remaining :]


class ChunkedBody:
    """A body in chunks. Trailer fields are checked and dropped (RFC 9110, section 6.5.1)."""

    __slots__ = ("_extension_bytes", "_remaining", "_step", "_trailer_bytes", "complete", "paused")

    _step: Callable[["ChunkedBody", bytes, int, list[bytes]], int]

    def __init__(self) -> None:
        self.complete = False
        self.paused = False
        self._step = ChunkedBody._read_size  # a bound method would make a reference cycle
        self._remaining = 0
        self._extension_bytes = 0
        self._trailer_bytes = 0

    def read(self, data: bytes) -> tuple[bytes, bytes]:
        """See Body."""
        content: list[bytes] = []
        at = steps = 0
        while not self.complete and steps < 3 * STEP_CHUNKS:  # size, content, line end
            after = self._step(self, data, at, content)
            if after == at:
                break
            at = after
            steps += 1
        self.paused = not self.complete and steps == 3 * STEP_CHUNKS
        return b"".join(content), data[at:]

    def _read_size(self, data: bytes, at: int, content: list[bytes]) -> int:
        match = _SIZE.match(data, at)
        if match is None:
            self._require_size_beginning(data, at)
            return at
        self._extension_bytes += len(match[2])
        if self._extension_bytes > EXTENSION_BYTES:
            raise _too_large(reasons.EXTENSIONS_TOO_LARGE, "chunk extensions")
        self._remaining = int(match[1], 16)
        self._step = ChunkedBody._read_content if self._remaining else ChunkedBody._read_trailer
        return match.end()

    def _require_size_beginning(self, data: bytes, at: int) -> None:
        """Raise unless `data` can be the beginning of a line with a size."""
        if len(data) - at > EXTENSION_BYTES + 10:
            raise _too_large(reasons.EXTENSIONS_TOO_LARGE, "chunk extensions")
        if not _SIZE_BEGINNING.fullmatch(data, at):
            raise _malformed("The size of a chunk is not a hexadecimal number.")

    def _read_content(self, data: bytes, at: int, content: list[bytes]) -> int:
        piece = data[at : at + self._remaining]
        content.append(piece)
        self._remaining -= len(piece)
        if not self._remaining:
            self._step = ChunkedBody._read_line_end
        return at + len(piece)

    def _read_line_end(self, data: bytes, at: int, content: list[bytes]) -> int:
        end = data[at : at + 2]
        if not b"\r\n".startswith(end):
            raise _malformed("A chunk is longer than its size.")
        if len(end) < 2:
            return at
        self._step = ChunkedBody._read_size
        return at + 2

    def _read_trailer(self, data: bytes, at: int, content: list[bytes]) -> int:
        end = data.find(b"\r\n", at, at + TRAILER_BYTES + 2)
        self.complete = end == at
        if self.complete:
            return at + 2
        length = (len(data) if end < 0 else end + 2) - at
        if self._trailer_bytes + length > TRAILER_BYTES:
            raise _too_large(reasons.TRAILERS_TOO_LARGE, "trailer fields")
        if end < 0:
            return at
        if not _TRAILER.fullmatch(data, at, end + 2):
            raise _malformed("A trailer is not a field.")
        self._trailer_bytes += length
        return end + 2


def _malformed(message: str) -> HttpError:
    return HttpError(reasons.MALFORMED_HTTP, message, outcome=Outcome.UNKNOWN)


def _too_large(reason: Reason, parts: str) -> HttpError:
    text = f"The {parts} of the body are too large."
    return HttpError(reason, text, outcome=Outcome.UNKNOWN)
