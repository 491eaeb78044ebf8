"""The WebSocket at /ws: frames of proto/postbus/realtime/v1, as proto3 JSON in text messages."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime

import structlog
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from gateway.caller_revisions import CallerRevisions
from gateway.connection import Connection
from gateway.events import EventFeed
from gateway.metrics import Metrics
from gateway.problems import CLOSE_CODES
from shared.errors import Code, ServiceError
from shared.messagebus import MessageBus
from shared.revocations import SessionVerifier

__all__ = ["WebSocketEndpoint"]

_log = structlog.get_logger()
_AUTHENTICATION_SECONDS = 10.0
_CLOSE_SECONDS = 1.0


class WebSocketEndpoint:
    """Accepts WebSockets: an ASGI application."""

    def __init__(
        self,
        bus: MessageBus,
        verifier: SessionVerifier,
        feed: EventFeed,
        revisions: CallerRevisions,
        metrics: Metrics,
    ) -> None:
        self._bus = bus
        self._verifier = verifier
        self._feed = feed
        self._revisions = revisions
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one client until it leaves, its token or session ends, or it is too slow."""
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        connection = Connection(self._bus, self._verifier, self._feed, self._revisions)
        with self._metrics.sockets.track_inprogress():
            try:
                ended = await self._serve(socket, connection)
            finally:
                await connection.close()
        if ended is not None:
            with suppress(RuntimeError, TimeoutError, WebSocketDisconnect):  # it may be gone
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await socket.close(CLOSE_CODES[ended.code], ended.reason)

    async def _serve(self, socket: WebSocket, connection: Connection) -> ServiceError | None:
        """Run until one side ends; return why, if it is we who end it."""
        tasks = {
            asyncio.create_task(work)
            for work in (
                _read(socket, connection),
                _write(socket, connection),
                _expire(connection, self._verifier),
                _overflow(connection),
                _miss_events(connection, self._feed),
            )
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return _reason(done)


def _reason(done: set[asyncio.Task[None]]) -> ServiceError | None:
    for task in done:
        try:
            task.result()
        except WebSocketDisconnect:
            return None
        except ServiceError as error:
            return error
    return None


async def _read(socket: WebSocket, connection: Connection) -> None:
    while True:
        text = await socket.receive()
        if text["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(text.get("code", 1005))
        connection.receive(text.get("text") or "")


async def _write(socket: WebSocket, connection: Connection) -> None:
    while True:
        await socket.send_text(await connection.next_frame())


async def _overflow(connection: Connection) -> None:
    """End a connection whose client reads too slowly."""
    await connection.overflowed.wait()
    raise ServiceError(
        Code.RESOURCE_EXHAUSTED, "CLIENT_TOO_SLOW", "Too many frames wait to be read."
    )


async def _miss_events(connection: Connection, feed: EventFeed) -> None:
    """End a connection that may have missed events: its client must not believe that it has all."""
    while True:
        await feed.gap.wait()
        if connection.subscribed:
            raise ServiceError(
                Code.UNAVAILABLE, "EVENTS_INTERRUPTED", "Events may have been missed."
            )


async def _expire(connection: Connection, verifier: SessionVerifier) -> None:
    """End a connection that does not say who it is, or whose token or session has ended."""
    try:
        async with asyncio.timeout(_AUTHENTICATION_SECONDS):
            caller = await connection.authenticated
    except TimeoutError:
        raise ServiceError(
            Code.UNAUTHENTICATED, "TOKEN_MISSING", "Authenticate with the first frame."
        ) from None
    try:
        async with asyncio.timeout((caller.expires_at - datetime.now(UTC)).total_seconds()):
            await verifier.until_revoked(caller)
    except TimeoutError:
        raise ServiceError(
            Code.UNAUTHENTICATED, "TOKEN_EXPIRED", "The access token has expired."
        ) from None
