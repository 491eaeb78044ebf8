"""The state of one WebSocket client: authenticated or not, its calls and subscriptions."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from gateway.caller_revisions import CallerRevisions
from gateway.calls import MAX_TIMEOUT
from gateway.event_feed import CLIENT_EVENTS, EventFeed
from gateway.large import LARGE_BYTES, read_in_thread
from gateway.problems import CLOSE_CODES
from gateway.rates import Rates
from gateway.socket_limits import SocketLimits, SocketQuotas
from gateway.websocket_frames import (
    EVENT_SUFFIX,
    ClientFrame,
    answer_frame,
    error_frame,
    event_prefix,
    frame_id,
    read_client_frame,
    result_frame,
)
from gateway.websocket_protocol import Socket
from postbus.bus.v1 import Outcome
from postbus.registry import Method
from shared.bus import Call, MessageBus, call_method
from shared.errors import Code, ServiceError, internal
from shared.identity import Caller
from shared.protojson import parse_json
from shared.runtime.session_verifier import SessionVerifier
from shared.trace import child_traceparent, new_traceparent, trace_id
from shared.wire import message_class, parse

__all__ = ["AUTHENTICATION_BYTES", "Connection", "Services"]

_log = structlog.get_logger()

AUTHENTICATION_BYTES: Final = 8192
"""Largest message of a client that has not authenticated."""
_AUTHENTICATION_SECONDS: Final = 10.0
"""From the handshake to the frame `authenticate`."""
_MAX_CALLS: Final = 64
"""Calls of one connection that run at once."""
_MAX_WAITING_BYTES: Final = 4 * 2**20
"""Most bytes that wait for a client to read them, beyond the buffers of the kernel."""
_REALTIME: Final = "postbus.realtime.v1."
_Authenticated: Any = message_class(_REALTIME + "Authenticated")
_SUBSCRIBED: Final = message_class(_REALTIME + "Subscribed")()
_UNSUBSCRIBED: Final = message_class(_REALTIME + "Unsubscribed")()
_COMPLETED: Final = message_class(_REALTIME + "Completed")()


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The services that all connections of a gateway share."""

    bus: MessageBus
    verifier: SessionVerifier
    feed: EventFeed
    revisions: CallerRevisions
    rates: Rates
    limits: SocketLimits
    quotas: SocketQuotas
    max_bytes: int
    """Largest message of an authenticated client."""


class Connection:
    """One client; a Receiver of its socket. `close` ends its calls and subscriptions."""

    __slots__ = (
        "_access_token",
        "_address",
        "_caller",
        "_calls",
        "_loop",
        "_reading",
        "_revocation",
        "_services",
        "_socket",
        "_subscriptions",
        "_timer",
        "ended",
    )

    def __init__(self, socket: Socket, services: Services, *, address: str = "") -> None:
        """Serve the client at `address` over `socket`."""
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done once the socket is closed, by either side."""
        self._address = address
        self._socket = socket
        self._services = services
        self._caller: Caller | None = None
        self._access_token = ""
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._subscriptions: dict[str, _Subscription] = {}
        self._reading: asyncio.Task[None] | None = None
        self._revocation: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(_AUTHENTICATION_SECONDS, self.end, _unauthenticated())

    def disconnected(self) -> None:
        """See Receiver."""
        if not self.ended.done():
            self.ended.set_result(None)

    def end(self, error: ServiceError) -> None:
        """Close the socket with the code and reason of `error`."""
        self._socket.close(CLOSE_CODES[error.code], error.reason)

    async def close(self) -> None:
        """End every call and subscription, once the socket is closed."""
        self._timer.cancel()
        for id_ in tuple(self._subscriptions):
            self._end_subscription(id_)
        tasks = [*self._calls.values(), *filter(None, (self._reading, self._revocation))]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._caller is not None:
            self._services.quotas.users.release(self._caller.user_id)
            self._caller = None

    def receive(self, message: bytes) -> asyncio.Task[None] | None:
        """Handle a frame; answer one that is refused with an error frame.

        Before authentication, a refused frame ends the connection. A large frame is read in a
        thread: the task ends once it is handled.
        """
        if len(message) > LARGE_BYTES:
            self._reading = self._loop.create_task(self._receive_large(message))
            return self._reading
        id_ = ""
        try:
            document = parse_json(message)
            id_ = frame_id(document)
            if self._caller is None:
                self._authenticate(document, message)
            else:
                self._act(read_client_frame(document, message), self._caller)
        except ServiceError as error:
            self._fail(id_, error, new_traceparent())
            if self._caller is None:
                self.end(error)

        return None

    async def _receive_large(self, message: bytes) -> None:
        id_ = ""
        try:
            document = await read_in_thread(parse_json, message)
            id_ = frame_id(document)
            frame = await read_in_thread(read_client_frame, document, message)
            if self._caller is not None:  # else `close` has begun
                self._act(frame, self._caller)
        except ServiceError as error:
            self._fail(id_, error, new_traceparent())

    # Authentication

    def _authenticate(self, document: Any, text: bytes) -> None:
        if not isinstance(document, dict) or "authenticate" not in document:
            raise _unauthenticated()
        frame = read_client_frame(document, text)
        token = frame.content.access_token
        caller = self._services.verifier.verify(token)
        self._services.quotas.users.take(caller.user_id)
        self._caller, self._access_token = caller, token
        self._socket.max_bytes = self._services.max_bytes
        self._end_with_session(caller)
        answer = _Authenticated(user_id=caller.user_id)
        answer.expires_at.FromDatetime(caller.expires_at)
        self._write(answer_frame("authenticated", answer, id_=frame.id))

    def _end_with_session(self, caller: Caller) -> None:
        self._timer.cancel()
        expired = ServiceError(
            Code.UNAUTHENTICATED, "TOKEN_EXPIRED", "The access token has expired."
        )
        seconds = (caller.expires_at - datetime.now(UTC)).total_seconds()
        self._timer = self._loop.call_later(seconds, self.end, expired)
        self._revocation = self._loop.create_task(self._end_when_revoked(caller))

    async def _end_when_revoked(self, caller: Caller) -> None:
        try:
            await self._services.verifier.until_revoked(caller)
        except ServiceError as error:
            self.end(error)

    def _act(self, frame: ClientFrame, caller: Caller) -> None:
        self._services.verifier.require_open(caller)
        match frame.kind:
            case "call":
                self._call(frame, caller.user_id)
            case "cancel":
                self._cancel(frame.content.call)
            case "subscribe":
                self._subscribe(frame.id, frame.content.types, caller)
            case "unsubscribe":
                self._unsubscribe(frame)
            case _:
                raise ServiceError(
                    Code.FAILED_PRECONDITION,
                    "AUTHENTICATED_BEFORE",
                    "This connection is authenticated.",
                )

    # Calls

    def _call(self, frame: ClientFrame, user_id: str) -> None:
        if len(self._calls) >= _MAX_CALLS:
            raise ServiceError(
                Code.RESOURCE_EXHAUSTED,
                "TOO_MANY_CALLS",
                f"At most {_MAX_CALLS} calls at once.",
                retry_after=1,
            )
        if frame.id in self._calls:
            raise ServiceError(
                Code.ALREADY_EXISTS, "CALL_ID_TAKEN", "A call with this id is running."
            )
        self._calls[frame.id] = self._loop.create_task(self._run_call(frame, user_id))

    def _cancel(self, id_: str) -> None:
        call = self._calls.pop(id_, None)
        if call is None:
            raise ServiceError(Code.NOT_FOUND, "UNKNOWN_CALL", "No such call is running.")
        call.cancel()
        cancelled = ServiceError(
            Code.CANCELLED,
            "CANCELLED",
            "The client has cancelled the call.",
            outcome=Outcome.UNKNOWN,
        )
        self._fail(id_, cancelled, new_traceparent())

    async def _run_call(self, frame: Any, user_id: str) -> None:
        """Answer a call, unless it is cancelled; its id is free again with the last answer."""
        traceparent = child_traceparent(frame.content.traceparent)
        try:
            await self._services.rates.admit(self._address, user_id, frame.method)
            call = self._new_call(frame, traceparent, user_id)
            if frame.method.streams:
                await self._stream(frame.method, call, frame.id)
            else:
                result = await call_method(self._services.bus, frame.method, call)
                self._services.revisions.learn(user_id, result.caller_revision)
                self._answer(frame.method, result.payload, frame.id, replayed=result.replayed)
        except ServiceError as error:
            self._fail(frame.id, error, traceparent)
        except Exception:  # noqa: BLE001  # the edge: the client waits for an answer
            _log.exception("call.failed", trace_id=trace_id(traceparent))
            self._fail(frame.id, internal(), traceparent)
        if self._calls.get(frame.id) is asyncio.current_task():
            del self._calls[frame.id]

    def _new_call(self, frame: Any, traceparent: str, user_id: str) -> Call:
        milliseconds = frame.content.timeout_ms
        seconds = milliseconds / 1000 if milliseconds else frame.method.timeout
        return Call.new(
            frame.request.SerializeToString(),
            deadline=time.time() + min(seconds, MAX_TIMEOUT),
            access_token=self._access_token,
            operation_id=frame.content.operation_id,
            traceparent=traceparent,
            caller_revision=self._services.revisions.known(user_id),
            client_address=self._address,
        )

    async def _stream(self, method: Method, call: Call, id_: str) -> None:
        """Send the results of a stream, and read it no faster than the client reads them."""
        async with aclosing(self._services.bus.stream(method.name, call)) as payloads:
            async for payload in payloads:
                self._answer(method, payload, id_)
                await self._socket.drain()
        self._write(answer_frame("completed", _COMPLETED, id_=id_))

    def _answer(self, method: Method, payload: bytes, id_: str, *, replayed: bool = False) -> None:
        response = parse(method.response_name, payload)
        self._write(result_frame(response, id_=id_, replayed=replayed))

    # Subscriptions

    def _subscribe(self, id_: str, types: Any, caller: Caller) -> None:
        names = set(types)
        if not names <= CLIENT_EVENTS.keys():
            raise ServiceError(
                Code.INVALID_ARGUMENT, "UNKNOWN_EVENT", "There is no event of such a type."
            )
        self._require_new_subscription(id_, names)
        self._services.quotas.subscriptions.take(caller.user_id)
        subscription = self._subscriptions[id_] = _Subscription(self, id_, names)
        try:
            for name in names:
                self._services.feed.listen(name, subscription, user_id=caller.user_id)
        except ServiceError:
            self._end_subscription(id_)
            raise
        self._write(answer_frame("subscribed", _SUBSCRIBED, id_=id_))

    def _require_new_subscription(self, id_: str, names: set[str]) -> None:
        most = self._services.limits.subscriptions_per_socket
        if id_ in self._subscriptions or len(self._subscriptions) >= most:
            raise ServiceError(
                Code.RESOURCE_EXHAUSTED,
                "TOO_MANY_SUBSCRIPTIONS",
                f"At most {most} subscriptions, each with an id of its own.",
            )
        if any(names & known.types for known in self._subscriptions.values()):
            raise ServiceError(
                Code.ALREADY_EXISTS,
                "ALREADY_SUBSCRIBED",
                "This socket has a subscription to an event of these types.",
            )

    def _unsubscribe(self, frame: ClientFrame) -> None:
        id_ = frame.content.subscription
        if id_ not in self._subscriptions:
            raise ServiceError(
                Code.NOT_FOUND, "UNKNOWN_SUBSCRIPTION", "There is no such subscription."
            )
        self._end_subscription(id_)
        self._write(answer_frame("unsubscribed", _UNSUBSCRIBED, id_=frame.id))

    def _end_subscription(self, id_: str) -> None:
        self._services.feed.ignore(self._subscriptions.pop(id_))
        if self._caller is not None:
            self._services.quotas.subscriptions.release(self._caller.user_id)

    # Answers

    def _fail(self, id_: str, error: ServiceError, traceparent: str) -> None:
        self._write(error_frame(error, id_=id_, trace=trace_id(traceparent)))

    def _write(self, *parts: bytes) -> None:
        if self._socket.waiting_bytes > _MAX_WAITING_BYTES:
            self.end(
                ServiceError(
                    Code.RESOURCE_EXHAUSTED, "CLIENT_TOO_SLOW", "Too much waits to be read."
                )
            )
            return
        self._socket.write(*parts)


class _Subscription:
    """A Listener that writes events to its connection under the id of the subscription."""

    __slots__ = ("_connection", "_prefix", "types")

    def __init__(self, connection: Connection, id_: str, types: set[str]) -> None:
        self._connection = connection
        self._prefix = event_prefix(id_)
        self.types = types

    def deliver(self, delivery: bytes) -> None:
        self._connection._write(self._prefix, delivery, EVENT_SUFFIX)

    def interrupt(self) -> None:
        self._connection.end(
            ServiceError(Code.UNAVAILABLE, "EVENTS_INTERRUPTED", "Events may have been missed.")
        )


def _unauthenticated() -> ServiceError:
    return ServiceError(Code.UNAUTHENTICATED, "TOKEN_MISSING", "Authenticate with the first frame.")
