"""The calls of one WebSocket client."""

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from typing import Final

import structlog

from gateway.malformed_replies import malformed_reply
from gateway.services import Services
from gateway.websocket_frames import CallFrame, member_frame, result_frame
from gateway.websocket_sender import FrameSender
from postbus import reasons
from postbus.registry import Method
from shared.bus import Call, call_method
from shared.errors import Outcome, ServiceError, internal
from shared.trace import child_traceparent, new_traceparent, trace_id
from shared.wire import message_class, parse

__all__ = ["SocketCalls"]

_log = structlog.get_logger()
_MAX_CALLS: Final = 64
"""Concurrent calls of one WebSocket."""
_COMPLETED: Final = message_class("postbus.realtime.v1.Completed")()


class SocketCalls:
    """The running calls of an authenticated client."""

    __slots__ = ("_access_token", "_address", "_running", "_sender", "_services", "_user_id")

    def __init__(
        self,
        services: Services,
        sender: FrameSender,
        *,
        user_id: str,
        access_token: str,
        address: str,
    ) -> None:
        self._services = services
        self._sender = sender
        self._user_id = user_id
        self._access_token = access_token
        self._address = address
        self._running: dict[str, asyncio.Task[None]] = {}

    def start(self, frame: CallFrame, *, late: float = 0.0) -> None:
        """Start a call.

        RESOURCE_EXHAUSTED beyond 64 running calls; ALREADY_EXISTS if a call with this id runs.
        `late` is the time in seconds since the frame arrived: it counts for the deadline.
        """
        if len(self._running) >= _MAX_CALLS:
            raise ServiceError(
                reasons.TOO_MANY_CALLS,
                f"A WebSocket has at most {_MAX_CALLS} concurrent calls.",
                retry_after=1,
            )
        if frame.id in self._running:
            raise ServiceError(reasons.CALL_ID_TAKEN, "A call with this id is running.")
        self._running[frame.id] = asyncio.get_running_loop().create_task(self._run(frame, late))

    def cancel(self, id_: str) -> None:
        """Cancel a call and send its error frame; NOT_FOUND if no such call is running."""
        call = self._running.pop(id_, None)
        if call is None:
            raise ServiceError(reasons.UNKNOWN_CALL, "No such call is running.")
        call.cancel()
        cancelled = ServiceError(
            reasons.CANCELLED,
            "The client has cancelled the call.",
            outcome=Outcome.UNKNOWN,
        )
        self._sender.send_error(cancelled, id_=id_, traceparent=new_traceparent())

    @property
    def running(self) -> Iterable[asyncio.Task[None]]:
        """The tasks of the calls; a cancelled one sends no frame."""
        return self._running.values()

    async def _run(self, frame: CallFrame, late: float) -> None:
        """Send the results or the error of a call. After the last frame its id can be reused."""
        traceparent = child_traceparent(frame.content.traceparent)
        try:
            await self._services.rates.admit(self._address, self._user_id, frame.method)
            call = self._new_call(frame, traceparent, late)
            if frame.method.streams:
                await self._stream(frame.method, call, frame.id)
            else:
                own = self._services.own_methods.get(frame.method.name)
                sent = own(call) if own else call_method(self._services.bus, frame.method, call)
                result = await sent
                self._services.revisions.record(self._user_id, result.caller_revision)
                self._send_result(frame.method, result.payload, frame.id, replayed=result.replayed)
        except ServiceError as error:
            self._log_refusal(error, frame, traceparent)
            self._sender.send_error(error, id_=frame.id, traceparent=traceparent)
        except Exception:  # noqa: BLE001  # every call gets a frame
            _log.exception("call.failed", trace_id=trace_id(traceparent))
            self._sender.send_error(internal(), id_=frame.id, traceparent=traceparent)
        if self._running.get(frame.id) is asyncio.current_task():
            del self._running[frame.id]

    def _log_refusal(self, error: ServiceError, frame: CallFrame, traceparent: str) -> None:
        self._services.security_log.record_refusal(
            error,
            method=frame.method.name,
            user_id=self._user_id,
            address=self._address,
            trace_id=trace_id(traceparent),
        )

    def _new_call(self, frame: CallFrame, traceparent: str, late: float) -> Call:
        milliseconds = frame.content.timeout_ms
        seconds = milliseconds / 1000 if milliseconds else frame.method.timeout
        return Call.new(
            frame.request.SerializeToString(),
            budget=seconds - late,
            access_token=self._access_token,
            operation_id=frame.content.operation_id,
            traceparent=traceparent,
            caller_revision=self._services.revisions.highest(self._user_id),
            client_address=self._address,
        )

    async def _stream(self, method: Method, call: Call, id_: str) -> None:
        """Send the results of a stream; consume it no faster than the client reads them."""
        async with aclosing(self._services.bus.stream(method.name, call)) as payloads:
            async for payload in payloads:
                self._send_result(method, payload, id_)
                await self._sender.drain()
        self._sender.send(member_frame("completed", _COMPLETED, id_=id_))

    def _send_result(
        self, method: Method, payload: bytes, id_: str, *, replayed: bool = False
    ) -> None:
        try:
            response = parse(method.response_name, payload)
        except ServiceError:
            raise malformed_reply(method, self._services.log) from None
        self._sender.send(result_frame(response, id_=id_, replayed=replayed))
