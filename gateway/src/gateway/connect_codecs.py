"""The codecs of the Connect protocol: ProtoJSON and binary protobuf, with or without gzip."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import orjson
from google.protobuf.message import Message

from gateway.binary_messages import remove_unknown
from gateway.connect_errors import protocol_error
from postbus_runtime.reasons import Reason
from shared.errors import Code, ServiceError
from shared.protojson import read_json, read_message, write_message
from shared.wire import parse_as

__all__ = ["CODECS", "Codec", "TooLargeError", "compressed", "decompressed"]

_GZIP: Final = 16 + zlib.MAX_WBITS
_LEVEL: Final = 1
"""Three times as fast as the default of zlib, for JSON that is a tenth larger."""


@dataclass(frozen=True, slots=True)
class Codec:
    """Reads and writes messages."""

    name: str
    """As in `application/json` and in the query parameter `encoding`."""
    read: Callable[[type[Message], bytes], Message]
    """Returns the message of a class; INVALID_ARGUMENT for malformed bytes."""
    write: Callable[[Message], bytes]


def _read_json(kind: type[Message], data: bytes) -> Message:
    return read_message(kind, read_json(data))


def _write_json(message: Message) -> bytes:
    return orjson.dumps(write_message(message))


def _read_binary(kind: type[Message], data: bytes) -> Message:
    message = parse_as(kind, data, counted=False)
    remove_unknown(message)  # protobuf's own readers ignore them
    return message


def _write_binary(message: Message) -> bytes:
    return message.SerializeToString()


CODECS: Final = MappingProxyType(
    {
        each.name: each
        for each in (
            Codec("json", _read_json, _write_json),
            Codec("proto", _read_binary, _write_binary),
        )
    }
)
"""The codecs by name."""


class TooLargeError(ServiceError):
    """RESOURCE_EXHAUSTED: a message has more bytes than the limit."""

    def __init__(self, max_bytes: int) -> None:
        text = f"The message is larger than {max_bytes} bytes."
        super().__init__(Reason("", Code.RESOURCE_EXHAUSTED), text)


def compressed(data: bytes) -> bytes:
    """Return `data` compressed with gzip (RFC 1952)."""
    return zlib.compress(data, _LEVEL, _GZIP)


def decompressed(data: bytes, max_bytes: int) -> bytes:
    """Return `data` decompressed with gzip, without decompressing more than `max_bytes`.

    Raises TooLargeError beyond them, and INVALID_ARGUMENT unless `data` is exactly
    one member of gzip.
    """
    reader = zlib.decompressobj(_GZIP)
    try:
        content = reader.decompress(data, max_bytes + 1)
    except zlib.error:
        raise _malformed() from None
    if len(content) > max_bytes:
        raise TooLargeError(max_bytes)
    if not reader.eof or reader.unused_data:
        raise _malformed()
    return content


def _malformed() -> ServiceError:
    return protocol_error(Code.INVALID_ARGUMENT, "The message is not valid gzip.")
