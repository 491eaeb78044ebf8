"""Users that watch events over WebSockets, and reconnect when the gateway closes a socket."""

import asyncio
import json
import time
from contextlib import suppress
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from tests.faults.chaos.history import NOTIFICATION_CREATED, POST_CREATED, History, Socket
from tests.people import Person

__all__ = ["watch"]

_RECONNECT_SECONDS: Final = 0.3


async def watch(url: str, person: Person, history: History) -> None:
    """Add a socket to the history for each connection, until the task is cancelled."""
    while True:
        socket: Socket | None = None
        with suppress(WebSocketException, OSError, TimeoutError):
            async with connect(url, close_timeout=1) as connection:
                socket = await _subscribed(connection, person)
                if socket is not None:
                    history.sockets.append(socket)
                    await _read(connection, socket)
        if socket is not None:
            socket.closed = time.monotonic()
        await asyncio.sleep(_RECONNECT_SECONDS)


async def _subscribed(connection: ClientConnection, person: Person) -> Socket | None:
    """Authenticate and subscribe; None if the gateway refuses it at the moment."""
    for frame in (
        {"id": "1", "authenticate": {"accessToken": person.token}},
        {"id": "2", "subscribe": {"types": [POST_CREATED, NOTIFICATION_CREATED]}},
    ):
        await connection.send(json.dumps(frame))
        async with asyncio.timeout(6):
            response: dict[str, Any] = json.loads(await connection.recv())
        if "error" in response:
            return None
    return Socket(person=person.id, opened=time.monotonic())


async def _read(connection: ClientConnection, socket: Socket) -> None:
    async for text in connection:
        event = json.loads(text).get("event")
        if event:
            type_ = event["data"]["@type"].rpartition("/")[2]
            socket.seen.setdefault(type_, set()).add(event["subject"])
