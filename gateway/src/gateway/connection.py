"""What one WebSocket client may do: authenticate, call, subscribe."""

import asyncio
import time
from contextlib import aclosing
from typing import Any

import structlog
from google.protobuf.message import Message

from gateway.caller_revisions import CallerRevisions
from gateway.calls import MAX_TIMEOUT, public_method
from gateway.events import CLIENT_EVENTS, EventFeed, Listener
from gateway.frames import frame_id, read_client_frame, server_frame
from gateway.transcoding import Document, to_json
from postbus.bus.v1 import Outcome
from postbus.registry import Method
from shared.errors import Code, ServiceError, internal
from shared.identity import Caller
from shared.messagebus import Call, MessageBus, call_method
from shared.protojson import parse_json
from shared.revocations import SessionVerifier
from shared.trace import new_traceparent, trace_id
from shared.wire import encode, message_class, parse

__all__ = ["Connection"]

_log = structlog.get_logger()

_MAX_CALLS = 64
_MAX_SUBSCRIPTIONS = 64
_MAX_WAITING_FRAMES = 1024
_MAX_WAITING_RESULTS = 16
_MAX_WAITING_CHARACTERS = 4 * 2**20
_REALTIME = "postbus.realtime.v1."


class Connection:
    """The state of one client; `receive` takes its frames, `next_frame` has the answers.

    `authenticated` tells who the client is; `overflowed` is set once too much waits for it.
    """

    def __init__(
        self,
        bus: MessageBus,
        verifier: SessionVerifier,
        feed: EventFeed,
        revisions: CallerRevisions,
    ) -> None:
        self.authenticated: asyncio.Future[Caller] = asyncio.get_running_loop().create_future()
        self._bus = bus
        self._verifier = verifier
        self._feed = feed
        self._revisions = revisions
        self._access_token = ""
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Event()
        self._subscriptions: dict[str, Listener] = {}
        self._out: asyncio.Queue[str] = asyncio.Queue()
        self._waiting_characters = 0
        self.overflowed = asyncio.Event()

    @property
    def subscribed(self) -> bool:
        """Whether the client waits for events."""
        return bool(self._subscriptions)

    async def close(self) -> None:
        """End every call and subscription."""
        for listener in self._subscriptions.values():
            self._feed.ignore(listener)
        for call in self._calls.values():
            call.cancel()
        await asyncio.gather(*self._calls.values(), return_exceptions=True)

    async def next_frame(self) -> str:
        """Wait for the next frame to send."""
        frame = await self._out.get()
        self._waiting_characters -= len(frame)
        self._room.set()
        return frame

    def receive(self, text: str) -> None:
        """Act on a client's frame; one that is wrong is answered with an error frame."""
        id_ = ""
        try:
            data = text.encode()
            document = parse_json(data)
            id_ = frame_id(document)
            frame = read_client_frame(document, data)
            getattr(self, f"_{frame.WhichOneof('frame')}")(frame)
        except ServiceError as error:
            self._fail(id_, error, trace_id(new_traceparent()))

    def _authenticate(self, frame: Any) -> None:
        if self.authenticated.done():
            raise ServiceError(
                Code.FAILED_PRECONDITION, "AUTHENTICATED_BEFORE", "This connection is known."
            )
        caller = self._verifier.verify(frame.authenticate.access_token)
        self._access_token = frame.authenticate.access_token
        self.authenticated.set_result(caller)
        answer = message_class(_REALTIME + "Authenticated")(user_id=caller.user_id)
        answer.expires_at.FromDatetime(caller.expires_at)  # type: ignore[attr-defined]
        self._send("authenticated", answer, id_=frame.id)

    def _require_caller(self) -> Caller:
        if not self.authenticated.done():
            raise ServiceError(
                Code.UNAUTHENTICATED, "TOKEN_MISSING", "Authenticate with the first frame."
            )
        caller = self.authenticated.result()
        self._verifier.require_open(caller)
        return caller

    def _call(self, frame: Any) -> None:
        self._require_caller()
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
        id_ = frame.id
        call = asyncio.create_task(self._run_call(frame))
        self._calls[id_] = call
        call.add_done_callback(lambda _: self._calls.pop(id_, None))

    def _cancel(self, frame: Any) -> None:
        self._require_caller()
        call = self._calls.get(frame.cancel.call)
        if call is None:
            raise ServiceError(Code.NOT_FOUND, "UNKNOWN_CALL", "No such call is running.")
        call.cancel()
        cancelled = ServiceError(
            Code.CANCELLED, "CANCELLED", "You have ended the call.", outcome=Outcome.UNKNOWN
        )
        self._fail(frame.cancel.call, cancelled, trace_id(new_traceparent()))

    async def _run_call(self, frame: Any) -> None:
        traceparent = new_traceparent()
        try:
            method = public_method(frame.call.method)
            call = self._request(method, frame.call, traceparent)
            if method.streams:
                await self._stream(method, call, frame.id)
            else:
                payload = await call_method(self._bus, method, call)
                self._revisions.learn(self.authenticated.result().user_id, call.caller_revision)
                self._send("result", _result(method, payload), id_=frame.id)
        except ServiceError as error:
            self._fail(frame.id, error, trace_id(traceparent))
        except Exception:  # noqa: BLE001  # the edge: the client waits for an answer
            _log.exception("call.failed", trace_id=trace_id(traceparent))
            self._fail(frame.id, internal(), trace_id(traceparent))

    async def _stream(self, method: Method, call: Call, id_: str) -> None:
        """Take from the stream no faster than the client reads."""
        async with aclosing(self._bus.stream(method.name, call)) as payloads:
            async for payload in payloads:
                self._send("result", _result(method, payload), id_=id_)
                while self._out.qsize() >= _MAX_WAITING_RESULTS:
                    self._room.clear()
                    await self._room.wait()
        self._send("completed", message_class(_REALTIME + "Completed")(), id_=id_)

    def _request(self, method: Method, frame: Any, traceparent: str) -> Call:
        if frame.request.TypeName() != method.request_name:
            raise ServiceError(
                Code.INVALID_ARGUMENT,
                "WRONG_REQUEST_TYPE",
                f"{method.name} takes a {method.request_name}.",
            )
        seconds = frame.timeout_ms / 1000 if frame.timeout_ms else method.timeout
        return Call.new(
            frame.request.value,
            deadline=time.time() + min(seconds, MAX_TIMEOUT),
            access_token=self._access_token,
            traceparent=traceparent,
            caller_revision=self._revisions.known(self.authenticated.result().user_id),
        )

    def _subscribe(self, frame: Any) -> None:
        caller = self._require_caller()
        unknown = [name for name in frame.subscribe.types if name not in CLIENT_EVENTS]
        if unknown:
            raise ServiceError(
                Code.INVALID_ARGUMENT, "UNKNOWN_EVENT", "There is no event of such a type."
            )
        if frame.id in self._subscriptions or len(self._subscriptions) >= _MAX_SUBSCRIPTIONS:
            raise ServiceError(
                Code.RESOURCE_EXHAUSTED,
                "TOO_MANY_SUBSCRIPTIONS",
                f"At most {_MAX_SUBSCRIPTIONS} subscriptions, each with an id of its own.",
            )
        id_ = frame.id

        def listener(delivery: Document) -> None:
            self._send_document("event", delivery, id_=id_)

        for name in frame.subscribe.types:
            self._feed.listen(name, listener, user_id=caller.user_id)
        self._subscriptions[id_] = listener
        self._send("subscribed", message_class(_REALTIME + "Subscribed")(), id_=id_)

    def _unsubscribe(self, frame: Any) -> None:
        self._require_caller()
        listener = self._subscriptions.pop(frame.unsubscribe.subscription, None)
        if listener is None:
            raise ServiceError(
                Code.NOT_FOUND, "UNKNOWN_SUBSCRIPTION", "There is no such subscription."
            )
        self._feed.ignore(listener)
        self._send("unsubscribed", message_class(_REALTIME + "Unsubscribed")(), id_=frame.id)

    def _send(self, kind: str, message: Message, *, id_: str) -> None:
        self._send_document(kind, to_json(message), id_=id_)

    def _send_document(self, kind: str, document: Document, *, id_: str) -> None:
        text = server_frame(kind, document, id_=id_)
        waiting = self._waiting_characters
        if self._out.qsize() >= _MAX_WAITING_FRAMES or waiting > _MAX_WAITING_CHARACTERS:
            self.overflowed.set()
            return
        self._waiting_characters += len(text)
        self._out.put_nowait(text)

    def _fail(self, id_: str, error: ServiceError, trace: str) -> None:
        encoded = encode(error.to_message(trace))
        self._send("error", parse("postbus.bus.v1.Error", encoded), id_=id_)


def _result(method: Method, payload: bytes) -> Any:
    result: Any = message_class(_REALTIME + "Result")()
    result.response.Pack(parse(method.response_name, payload))
    return result
