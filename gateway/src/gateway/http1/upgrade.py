"""The upgrade of a connection to the WebSocket protocol (RFC 6455, section 4.2).

Upgrades to other protocols are declined: the Upgrade field is ignored (RFC 9110, section 7.8).
"""

import asyncio
import logging
from collections.abc import Callable

from websockets.exceptions import HeaderLineTooLong, InvalidHeader, RequestLineTooLong
from websockets.server import ServerProtocol

from gateway.http1.head import Head
from gateway.problems import HttpError
from postbus import reasons

__all__ = ["hand_over", "is_handshake", "rebuild", "require_handshake"]

_NO_LOG = logging.Logger("handshake")
_NO_LOG.disabled = True


def is_handshake(head: Head) -> bool:
    """Return whether a request is a WebSocket handshake."""
    return (
        head.upgrade == b"websocket"
        and head.method == "GET"
        and head.version == "1.1"
        and not head.content_length
    )


def require_handshake(head: Head) -> None:
    """Raise HttpError 400, 414, 426 or 431 unless `websockets` accepts a handshake.

    The refusals of `websockets` have no reason, so each handshake is first tried on a copy.
    """
    _require_version(head)
    trial = ServerProtocol(logger=_NO_LOG)
    trial.receive_data(rebuild(head))
    for request in trial.events_received():
        trial.accept(request)  # type: ignore[arg-type]  # the first event is a Request
    if not trial.accept_called or trial.handshake_exc is not None:
        raise _invalid(trial.handshake_exc)


def _invalid(error: Exception | None) -> HttpError:
    if isinstance(error, RequestLineTooLong):
        return HttpError(reasons.TARGET_TOO_LONG, "The target of a handshake is limited to 8 KiB.")
    if isinstance(error, HeaderLineTooLong):
        return HttpError(reasons.FIELD_TOO_LARGE, "A field of a handshake is limited to 8 KiB.")
    field = f" {error.name} is missing or invalid." if isinstance(error, InvalidHeader) else ""
    return HttpError(reasons.HANDSHAKE_INVALID, f"The WebSocket handshake is invalid.{field}")


def _require_version(head: Head) -> None:
    """Raise HttpError 426 unless the version is 13 (RFC 6455, section 4.2.2)."""
    versions = [value for name, value in head.fields if name == b"sec-websocket-version"]
    if versions != [b"13"]:
        error = HttpError(
            reasons.WEBSOCKET_VERSION_UNSUPPORTED, "The supported version of WebSocket is 13."
        )
        error.headers = {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"}
        raise error


def rebuild(head: Head) -> bytes:
    """Return the bytes of a head."""
    target = head.raw_path + (b"?" + head.query if head.query else b"")
    lines = [b"%b %b HTTP/%b\r\n" % (head.method.encode(), target, head.version.encode())]
    lines += (b"%b: %b\r\n" % field for field in head.fields)
    return b"".join((*lines, b"\r\n"))


def hand_over(
    transport: asyncio.Transport,
    protocol: asyncio.Protocol,
    *,
    head: bytes,
    received: bytes,
    lost: Callable[[], None],
) -> None:
    """Give a connection to `protocol`, and call `lost` when the connection is lost.

    `protocol` receives the head and the bytes after it separately: it may treat the bytes after the
    head as frames only once it has accepted the handshake.
    """
    transport.set_protocol(_Upgraded(protocol, lost))
    protocol.connection_made(transport)
    protocol.data_received(head)
    if received:
        protocol.data_received(received)


class _Upgraded(asyncio.Protocol):
    """Another protocol, with a callback for the end of the connection."""

    def __init__(self, protocol: asyncio.Protocol, lost: Callable[[], None]) -> None:
        self._protocol = protocol
        self._lost = lost
        self.data_received = protocol.data_received  # type: ignore[method-assign]
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]

    def connection_lost(self, exc: Exception | None) -> None:
        """Call the callback, then the other protocol."""
        self._lost()
        self._protocol.connection_lost(exc)
