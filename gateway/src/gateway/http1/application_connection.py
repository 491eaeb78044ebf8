"""The start of the application for each request, and of the WebSocket protocol for a handshake."""

import asyncio
from typing import Any

from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.cors import Cors
from gateway.http1.body_framing import ChunkedBody, SizedBody
from gateway.http1.buffered_connection import BufferedConnection
from gateway.http1.deadlines import NEVER
from gateway.http1.exchange import Exchange
from gateway.http1.head import Head
from gateway.http1.head_fields import CHUNKED
from gateway.http1.http_limits import ConnectionCounts, HttpLimits
from gateway.http1.upgrade import hand_over, rebuild, require_handshake
from gateway.problems import HttpError

__all__ = ["ApplicationConnection"]


class ApplicationConnection(BufferedConnection):
    """A connection that runs the application for each head that a subclass has read."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: HttpLimits,
        clients: ConnectionCounts,
        cors: Cors,
    ) -> None:
        loop = _loop or asyncio.get_running_loop()
        super().__init__(server_state, loop, limits=limits, clients=clients, cors=cors)
        self._config = config
        self._app = config.loaded_app
        self._app_state = app_state
        self._began = 0.0  # start of the request, by the loop's clock

    def _begin(self, head: Head) -> None:
        """Run the application for a request."""
        length = head.content_length
        body = None
        if 0 <= length <= len(self._buffer):  # usually the whole body has arrived
            body, self._buffer = self._buffer[:length], self._buffer[length:]
            self._deadlines.reading = NEVER
        else:
            self._body = ChunkedBody() if length == CHUNKED else SizedBody(length)
            self._body_bytes = 0
            self._deadlines.read_until(self._began + self._limits.request_seconds)
        scope = self._scope(head)
        self._exchange = exchange = Exchange(
            scope,
            self,
            keep_alive=head.keep_alive,
            expects_continue=head.expects_continue,
            body=body,
        )
        self._run(exchange, scope)

    def _run(self, exchange: Exchange, scope: Scope) -> None:
        exchange.task = self._loop.create_task(exchange.run(self._app, scope))
        self.tasks.add(exchange.task)

    def _scope(self, head: Head) -> Scope:
        root = self._config.root_path
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "server": self._server,
            "client": self._client,
            "scheme": self._scheme,
            "root_path": root,
            "method": head.method,
            "path": root + head.path,
            "raw_path": root.encode() + head.raw_path,
            "query_string": head.query,
            "headers": head.fields,
            "state": self._app_state.copy(),
        }

    def _read_handshake(self, head: Head) -> None:
        """Upgrade the connection, or refuse the handshake.

        The application is run for a refused handshake as well, so that it can count it.
        """
        try:
            require_handshake(head)
        except HttpError as error:
            scope = self._scope(head)
            scope["type"] = "websocket"
            self._deadlines.reading = NEVER
            self._exchange = exchange = Exchange(
                scope, self, keep_alive=False, expects_continue=False, body=b""
            )
            exchange.failure = error
            self._run(exchange, scope)
        else:
            self._upgrade(head)

    def _upgrade(self, head: Head) -> None:
        """Hand the connection over to the WebSocket protocol; it counts until it is lost."""
        protocol = self._config.ws_protocol_class(  # type: ignore[misc, call-arg]
            config=self._config, server_state=self._server_state, app_state=self._app_state
        )
        self._server_state.connections.discard(self)
        self._deadlines.cancel()
        self._closing = True
        received, self._buffer = self._buffer, b""
        self.update_reading()  # now: afterwards, `protocol` pauses and resumes the transport
        hand_over(
            self._transport,
            protocol,
            head=rebuild(head),
            received=received,
            lost=self._release,
        )
