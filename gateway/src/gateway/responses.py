"""Answers of the REST interface, and how they are sent."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from gateway.headers import Header

if TYPE_CHECKING:  # http1 answers with problems, and so imports this
    from gateway.http1.exchange import Exchange

__all__ = ["Answer"]

_log = structlog.get_logger()


@dataclass(slots=True)
class Answer:
    """A complete response; an ASGI application that sends itself.

    `headers` is a list of this answer's own: more may be appended until it is sent.
    """

    status: int
    headers: list[Header] = field(default_factory=list)
    body: bytes = b""

    def respond(self, exchange: "Exchange | None") -> bool:
        """Write the response; False if it has to be sent by `send`."""
        return exchange is not None and exchange.respond(self.status, self.headers, self.body)

    async def send(self, _receive: Receive, send: Send) -> None:
        """Send the response in two messages; raises ClientDisconnect if the client has left."""
        start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        try:
            await send(start)
            await send({"type": "http.response.body", "body": self.body})
        except (OSError, RuntimeError) as error:  # the connection is closed
            _log.debug("request.abandoned", error=repr(error))
            raise ClientDisconnect from error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; to the handshake of a WebSocket, by the extension for its denial."""
        if scope["type"] == "websocket":
            send = _denial(send)
        await self.send(receive, send)


def _denial(send: Send) -> Send:
    async def send_denial(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    return send_denial
