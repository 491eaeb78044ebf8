"""One WebSocket: the time to authenticate, the reading of frames, and the end of the token."""

import asyncio
from functools import partial
from typing import Any, Final

import structlog

from gateway.large_inputs import LARGE_BYTES
from gateway.request_headers import MAX_TIMEOUT
from gateway.services import Services
from gateway.socket_limits import FrameBudget
from gateway.websocket_client import WebSocketClient
from gateway.websocket_frames import (
    first_member_id,
    frame_id,
    parse_frame,
    read_client_frame,
    read_frame,
)
from gateway.websocket_interface import Socket
from gateway.websocket_sender import FrameSender
from postbus import reasons
from shared.access_tokens import Caller
from shared.errors import ServiceError, internal
from shared.trace import new_traceparent, trace_id

__all__ = ["AUTHENTICATION_BYTES", "WebSocketConnection"]

_log = structlog.get_logger()

AUTHENTICATION_BYTES: Final = 8192
"""Largest message of a client that has not authenticated."""
_AUTHENTICATION_SECONDS: Final = 10.0
"""Time from the handshake to the frame `authenticate`."""


class WebSocketConnection:
    """The connection of one client; a Receiver of its socket. Call `close` once it has ended."""

    __slots__ = (
        "_address",
        "_budget",
        "_client",
        "_loop",
        "_reading",
        "_sender",
        "_services",
        "_socket",
        "_timer",
        "ended",
    )

    def __init__(
        self, socket: Socket, services: Services, budget: FrameBudget, *, address: str = ""
    ) -> None:
        """Serve the client at `address` over `socket`; `budget` counts its frames."""
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done once the socket is closed, by either side."""
        self._address = address
        self._budget = budget
        self._socket = socket
        self._sender = FrameSender(socket)
        self._services = services
        self._client: WebSocketClient | None = None
        self._reading: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(
            _AUTHENTICATION_SECONDS, self._sender.close, _unauthenticated()
        )

    def disconnected(self) -> None:
        """See Receiver."""
        if not self.ended.done():
            self.ended.set_result(None)

    async def close(self) -> None:
        """End all calls and subscriptions, once the socket is closed."""
        self._timer.cancel()
        client, self._client = self._client, None
        if client is not None:
            await client.end(*([self._reading] if self._reading is not None else []))

    def receive(self, message: bytes) -> asyncio.Task[None] | None:
        """Handle a frame; send an error frame if it is refused.

        Before authentication, a refused frame closes the socket. A large frame is parsed in a
        thread: the returned task ends once the frame is handled.
        """
        if len(message) > LARGE_BYTES and self._client is not None:
            self._reading = self._loop.create_task(self._receive_large(message, self._client))
            return self._reading
        id_ = ""
        try:
            document = parse_frame(message)
            id_ = frame_id(document)
            if self._client is None:
                self._authenticate(document, message)
            else:
                self._client.handle(read_client_frame(document, message))
        except Exception as error:  # noqa: BLE001  # every frame gets a response
            failure = self._send_failure(error, id_)
            if self._client is None:
                self._sender.close(failure)
        return None

    async def _receive_large(self, message: bytes, client: WebSocketClient) -> None:
        """Handle a large frame. It counts as a request before it is parsed."""
        user_id = client.caller.user_id
        arrived = self._loop.time()
        id_ = first_member_id(message)
        try:
            await self._services.rates.admit(self._address, user_id)
            id_, frame = await self._services.large_inputs.read(
                user_id, MAX_TIMEOUT, partial(read_frame, message)
            )
            if isinstance(frame, ServiceError):  # raised here, it would refer to itself by `frame`
                self._sender.send_error(frame, id_=id_, traceparent=new_traceparent())
            else:
                client.handle(frame, late=self._loop.time() - arrived)
        except Exception as error:  # noqa: BLE001  # every frame gets a response
            self._send_failure(error, id_)

    def _send_failure(self, error: Exception, id_: str) -> ServiceError:
        """Send the error frame for a refused frame; INTERNAL for an unexpected exception."""
        traceparent = new_traceparent()
        if not isinstance(error, ServiceError):
            _log.error("frame.failed", trace_id=trace_id(traceparent), exc_info=error)
            error = internal()
        trace, log = trace_id(traceparent), self._services.security_log
        log.record_refusal(error, address=self._address, trace_id=trace)
        self._sender.send_error(error, id_=id_, traceparent=traceparent)
        return error

    def _authenticate(self, document: Any, text: bytes) -> None:
        if not isinstance(document, dict) or "authenticate" not in document:
            raise _unauthenticated()
        frame = read_client_frame(document, text)
        token = frame.content.access_token
        caller = self._services.verifier.verify(token)
        self._client = client = WebSocketClient(
            self._services,
            self._sender,
            caller=caller,
            access_token=token,
            address=self._address,
        )
        self._budget.shared = self._services.frame_budgets.of_user(caller.user_id)
        self._socket.max_bytes = self._services.max_body_bytes
        self._close_at_expiry(caller)
        client.greet(frame.id)

    def _close_at_expiry(self, caller: Caller) -> None:
        self._timer.cancel()
        expired = ServiceError(reasons.TOKEN_EXPIRED, "The access token has expired.")
        self._timer = self._loop.call_later(caller.remaining, self._sender.close, expired)


def _unauthenticated() -> ServiceError:
    return ServiceError(reasons.TOKEN_MISSING, "The first frame must be `authenticate`.")
