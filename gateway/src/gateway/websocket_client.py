"""An authenticated WebSocket client: its calls, its subscriptions, and the end of its session."""

import asyncio
from typing import Any, Final

from gateway.services import Services
from gateway.websocket_calls import SocketCalls
from gateway.websocket_frames import CallFrame, ClientFrame, member_frame
from gateway.websocket_sender import FrameSender
from gateway.websocket_subscriptions import SocketSubscriptions
from postbus import reasons
from shared import tasks
from shared.access_tokens import Caller
from shared.errors import ServiceError
from shared.wire import message_class

__all__ = ["WebSocketClient"]

_REALTIME: Final = "postbus.realtime.v1."
_Authenticated: Any = message_class(_REALTIME + "Authenticated")
_SUBSCRIBED: Final = message_class(_REALTIME + "Subscribed")()
_UNSUBSCRIBED: Final = message_class(_REALTIME + "Unsubscribed")()


class WebSocketClient:
    """A client with a valid access token. Call `end` once its socket is closed."""

    __slots__ = ("_calls", "_revocation", "_sender", "_services", "_subscriptions", "caller")

    def __init__(
        self,
        services: Services,
        sender: FrameSender,
        *,
        caller: Caller,
        access_token: str,
        address: str,
    ) -> None:
        """Count the socket of the user; RESOURCE_EXHAUSTED if the user has too many."""
        services.socket_quotas.users.take(caller.user_id)
        self.caller = caller
        self._services = services
        self._sender = sender
        self._calls = SocketCalls(
            services,
            sender,
            user_id=caller.user_id,
            access_token=access_token,
            address=address,
        )
        self._subscriptions = SocketSubscriptions(services, sender, user_id=caller.user_id)
        self._revocation = asyncio.get_running_loop().create_task(self._close_when_revoked())

    def greet(self, frame_id: str) -> None:
        """Send the response to the frame `authenticate`."""
        authenticated = _Authenticated(user_id=self.caller.user_id)
        authenticated.expires_at.FromDatetime(self.caller.expires_at)
        self._sender.send(member_frame("authenticated", authenticated, id_=frame_id))

    def handle(self, frame: ClientFrame, *, late: float = 0.0) -> None:
        """Handle a frame, which arrived `late` seconds ago; raise ServiceError if it is refused."""
        self._services.verifier.require_open(self.caller)
        if isinstance(frame, CallFrame):
            self._calls.start(frame, late=late)
            return
        match frame.kind:
            case "cancel":
                self._calls.cancel(frame.content.call)
            case "subscribe":
                self._subscriptions.add(frame.id, frame.content.types)
                self._sender.send(member_frame("subscribed", _SUBSCRIBED, id_=frame.id))
            case "unsubscribe":
                self._subscriptions.remove(frame.content.subscription)
                self._sender.send(member_frame("unsubscribed", _UNSUBSCRIBED, id_=frame.id))
            case _:
                raise ServiceError(
                    reasons.AUTHENTICATED_BEFORE,
                    "The WebSocket is authenticated already.",
                )

    async def end(self, *reading: "asyncio.Task[None]") -> None:
        """End all calls, subscriptions and the tasks `reading`, then release the socket."""
        self._subscriptions.remove_all()
        await tasks.end(*reading, self._revocation, *self._calls.running)
        self._services.socket_quotas.users.release(self.caller.user_id)

    async def _close_when_revoked(self) -> None:
        try:
            await self._services.verifier.until_revoked(self.caller)
        except ServiceError as error:
            self._sender.close(error)
