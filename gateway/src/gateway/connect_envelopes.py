"""Streams of the Connect protocol: enveloped messages (connectrpc.com/docs/protocol, Streaming)."""

import struct
from typing import Any, Final

import orjson

from gateway.connect_codecs import TooLargeError
from gateway.connect_errors import error_document, protocol_error
from shared.errors import Code, ServiceError
from shared.metadata import Metadata

__all__ = ["Encoded", "end_of_stream", "envelope", "only_message"]

_PREFIX: Final = struct.Struct(">BI")
_COMPRESSED: Final = 1
_END: Final = 2
"""Flags of an envelope."""

Encoded = tuple[bytes, bool]
"""An encoded message, and whether it is compressed."""


def envelope(message: Encoded) -> bytes:
    """Return a message of a stream in its envelope."""
    data, is_compressed = message
    return _enveloped(data, _COMPRESSED if is_compressed else 0)


def end_of_stream(error: ServiceError | None, trailers: Metadata | None, trace_id: str) -> bytes:
    """Return the last envelope of a stream, with the error of a failed call, and trailer fields."""
    document: dict[str, Any] = {"metadata": trailers} if trailers else {}
    if error is not None:
        document["error"] = error_document(error, trace_id)
    return _enveloped(orjson.dumps(document), _END)


def only_message(body: bytes, *, gzip: bool, max_bytes: int) -> Encoded:
    """Return the message of the only envelope in a body, and whether it is compressed.

    `gzip`: the request names a compression. Raises UNIMPLEMENTED unless there is one message,
    INVALID_ARGUMENT for a malformed envelope, INTERNAL for a compressed message without a
    compression, and TooLargeError for a message of more than `max_bytes`.
    """
    if not body:
        raise _not_one()
    if len(body) < _PREFIX.size:
        raise _malformed("An envelope is incomplete.")
    flags, size = _PREFIX.unpack_from(body)
    if flags not in (0, _COMPRESSED):
        raise _malformed("An envelope has unknown flags.")
    if flags and not gzip:
        text = "A message is compressed, but Connect-Content-Encoding is missing."
        raise protocol_error(Code.INTERNAL, text)
    if size > max_bytes:
        raise TooLargeError(max_bytes)
    end = _PREFIX.size + size
    if len(body) < end:
        raise _malformed("An envelope is incomplete.")
    if len(body) > end:
        raise _not_one()
    return body[_PREFIX.size : end], bool(flags)


def _enveloped(data: bytes, flags: int) -> bytes:
    return _PREFIX.pack(flags, len(data)) + data


def _malformed(message: str) -> ServiceError:
    return protocol_error(Code.INVALID_ARGUMENT, message)


def _not_one() -> ServiceError:
    return protocol_error(Code.UNIMPLEMENTED, "The method takes exactly one message.")
