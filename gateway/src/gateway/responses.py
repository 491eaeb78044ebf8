"""HTTP responses, and how they are sent."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from gateway.response_headers import Header

if TYPE_CHECKING:  # http1 sends problems, and so imports this module
    from gateway.http1.exchange import Exchange

__all__ = ["HttpResponse"]

_log = structlog.get_logger()


@dataclass(slots=True)
class HttpResponse:
    """A complete response, which is also an ASGI application that sends it.

    The list `headers` belongs to this response: fields can be appended until it is sent.
    """

    status: int
    headers: list[Header] = field(default_factory=list)
    body: bytes = b""

    def respond(self, exchange: "Exchange | None") -> bool:
        """Write the response at once; False if `send` has to be used instead."""
        return exchange is not None and exchange.respond(self.status, self.headers, self.body)

    async def send(self, _receive: Receive, send: Send) -> None:
        """Send the response in two messages; ClientDisconnect if the client has disconnected."""
        start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        try:
            await send(start)
            await send({"type": "http.response.body", "body": self.body})
        except (OSError, RuntimeError) as error:  # the connection is closed
            _log.debug("request.abandoned", error=repr(error))
            raise ClientDisconnect from error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; for a WebSocket, refuse its handshake with it (ASGI extension)."""
        if scope["type"] == "websocket":
            send = _denial(send)
        await self.send(receive, send)


def _denial(send: Send) -> Send:
    async def send_denial(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    return send_denial
