"""What the gateway is configured with."""

from pydantic import Field

from gateway.socket_limits import SocketLimits
from shared.settings import ServiceSettings

__all__ = ["GatewaySettings"]

_SOCKETS = SocketLimits()


class GatewaySettings(ServiceSettings):
    """See ServiceSettings."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on."""
    max_body_bytes: int = 1 << 20
    """Largest request body and WebSocket frame, in bytes."""
    socket_frames_per_second: int = Field(_SOCKETS.frames_per_second, ge=1)
    """Frames of one WebSocket, sustained; one counts once more for each 4 KiB of its payload."""
    socket_frame_burst: int = Field(_SOCKETS.frame_burst, ge=1)
    """Frames of one WebSocket at once, counted alike: `max_body_bytes` / 4 KiB must fit in."""
    sockets_per_address: int = Field(_SOCKETS.sockets_per_address, ge=1)
    """WebSockets of one IPv4 address or of one IPv6 /64 network."""
    sockets_per_user: int = Field(_SOCKETS.sockets_per_user, ge=1)
    """Authenticated WebSockets of one user."""
    subscriptions_per_socket: int = Field(_SOCKETS.subscriptions_per_socket, ge=1)
    """Subscriptions of one WebSocket."""
    subscriptions_per_user: int = Field(_SOCKETS.subscriptions_per_user, ge=1)
    """Subscriptions of one user on all WebSockets."""

    @property
    def socket_limits(self) -> SocketLimits:
        """The limits of WebSockets."""
        return SocketLimits(
            frames_per_second=self.socket_frames_per_second,
            frame_burst=self.socket_frame_burst,
            sockets_per_address=self.sockets_per_address,
            sockets_per_user=self.sockets_per_user,
            subscriptions_per_socket=self.subscriptions_per_socket,
            subscriptions_per_user=self.subscriptions_per_user,
        )
