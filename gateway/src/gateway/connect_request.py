"""The heads of Connect requests: codec, compression, timeout, and the message of a GET."""

import binascii
import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.connect_codecs import CODECS, Codec
from gateway.connect_errors import protocol_error
from gateway.media_types import accepts_gzip
from gateway.problems import HttpError
from gateway.request_headers import MAX_TIMEOUT, Headers
from gateway.targets import query_parameters
from postbus import reasons
from postbus.registry import Method
from shared.errors import Code, ServiceError

__all__ = ["ConnectHead", "codec_of", "media_type", "read_head", "read_query"]

_MILLISECONDS: Final = re.compile(rb"[0-9]{1,10}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectHead:
    """How to read a request and to write its response."""

    codec: Codec
    gzip: bool
    """Whether the message is compressed; in a stream, whether it may be."""
    accepts_gzip: bool
    timeout: float
    """Seconds from the arrival of the request."""
    message: bytes | None = None
    """The message of a GET; None if it is in the body."""


def media_type(codec: Codec, *, streams: bool) -> bytes:
    """Return the content type of requests and responses: `application/connect+json`."""
    return b"application/%b%b" % (b"connect+" if streams else b"", codec.name.encode())


def codec_of(headers: Headers, method: Method) -> Codec | None:
    """Return the codec of a POST by its Content-Type; None if it is not one of the method's."""
    given = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    for codec in CODECS.values():
        if given == media_type(codec, streams=method.streams):
            return codec
    return None


def read_head(headers: Headers, method: Method) -> ConnectHead:
    """Return the head of a POST.

    Raises 415 for a content type that the method does not have, INVALID_ARGUMENT for a version or
    timeout that the protocol does not have, and UNIMPLEMENTED for an unknown compression.
    """
    codec = codec_of(headers, method)
    if codec is None:
        raise _unsupported(method)
    _require_version(headers.get(b"connect-protocol-version", b"1"), b"1")
    prefix = b"connect-" if method.streams else b""
    return ConnectHead(
        codec=codec,
        gzip=_is_gzip(headers.get(prefix + b"content-encoding", b"").decode("latin-1")),
        accepts_gzip=_accepts_gzip(headers, prefix + b"accept-encoding"),
        timeout=_timeout(headers, method),
    )


def read_query(query: bytes, headers: Headers, method: Method) -> ConnectHead:
    """Return the head of a GET, with its message; raises like `read_head`.

    400 for a query that is malformed, has a parameter twice, or no message.
    """
    parameters = _parameters(query)
    codec = CODECS.get(parameters.get("encoding", ""))
    if codec is None:
        raise _unsupported(method)
    _require_version(parameters.get("connect", "v1").encode(), b"v1")
    return ConnectHead(
        codec=codec,
        gzip=_is_gzip(parameters.get("compression", "")),
        accepts_gzip=_accepts_gzip(headers, b"accept-encoding"),
        timeout=_timeout(headers, method),
        message=_message(parameters),
    )


def _parameters(query: bytes) -> Mapping[str, str]:
    pairs = query_parameters(query)
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        raise _malformed("A parameter of the query is given more than once.")
    return parameters


def _message(parameters: Mapping[str, str]) -> bytes:
    text = parameters.get("message")
    if text is None:
        raise _malformed("The query has no parameter `message`.")
    if parameters.get("base64", "0") != "1":
        return text.encode()
    try:
        return b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _malformed("The parameter `message` is not base64.") from None


def _timeout(headers: Headers, method: Method) -> float:
    """Return Connect-Timeout-Ms in seconds, 30 at most, or the timeout of the method."""
    value = headers.get(b"connect-timeout-ms")
    if value is None:
        return method.timeout
    if not _MILLISECONDS.fullmatch(value):
        raise _malformed("Connect-Timeout-Ms takes milliseconds, with at most 10 digits.")
    return min(int(value) / 1000, MAX_TIMEOUT)


def _require_version(given: bytes, expected: bytes) -> None:
    if given != expected:
        raise _malformed(f"The version of the Connect protocol is {expected.decode()}.")


def _is_gzip(coding: str) -> bool:
    name = coding.strip().lower()
    if name in ("", "identity"):
        return False
    if name == "gzip":
        return True
    raise protocol_error(Code.UNIMPLEMENTED, "Compress messages with gzip, or not at all.")


def _accepts_gzip(headers: Headers, name: bytes) -> bool:
    value = headers.get(name)
    return value is not None and accepts_gzip(value.decode("latin-1"))


def _malformed(message: str) -> ServiceError:
    return protocol_error(Code.INVALID_ARGUMENT, message)


def _unsupported(method: Method) -> HttpError:
    """Return 415: Connect clients read the status, because there is no common codec."""
    names = b", ".join(media_type(each, streams=method.streams) for each in CODECS.values())
    return HttpError(
        reasons.CODEC_UNSUPPORTED,
        f"Send the message as {names.decode().replace(', ', ' or ')}.",
        headers={"Accept-Post": names.decode()},
    )
