"""Check that a server is PostgreSQL before asyncpg reads its bytes.

A message with a length below 4, such as zeros, makes asyncpg 0.32 loop for ever, and with it the
event loop of the process. A long one is kept in memory until the connection times out.
"""

import asyncio
from typing import Any, Final

import asyncpg.protocol

__all__ = ["refuse_other_servers"]

_FIRST: Final = b"REN"
"""Kinds of the first message of a server: authentication, error, notice
(https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP)."""
_MAX_LENGTH: Final = 2**16
"""Bytes of that message."""
_Protocol: Final = asyncpg.protocol.Protocol


class _CheckedProtocol(_Protocol):  # type: ignore[misc, valid-type]  # asyncpg has no types
    def __init__(
        self, address: object, connected: "asyncio.Future[object]", *arguments: Any
    ) -> None:
        super().__init__(address, connected, *arguments)
        self._connected = connected
        self._checked = False
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = transport
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self._checked:
            data = self._head = self._head + data
            if len(data) < 5:
                return
            if data[0] not in _FIRST or not 8 <= int.from_bytes(data[1:5]) <= _MAX_LENGTH:
                self._refuse()
                return
            self._checked, self._head = True, b""
        super().data_received(data)

    def _refuse(self) -> None:
        self._head = b""
        if not self._connected.done():
            self._connected.set_exception(ConnectionError("the server is not PostgreSQL"))
        self._socket.abort()  # type: ignore[attr-defined]  # of a socket


def refuse_other_servers() -> None:
    """Make every new connection of asyncpg fail with ConnectionError if the server is another.

    Repeated calls have no effect.
    """
    asyncpg.protocol.Protocol = _CheckedProtocol
