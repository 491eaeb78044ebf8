"""What the gateway is configured with."""

from shared.settings import ServiceSettings

__all__ = ["GatewaySettings"]


class GatewaySettings(ServiceSettings):
    """See ServiceSettings."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on."""
    max_body_bytes: int = 2 << 20
    """Largest request body and WebSocket frame, in bytes: room for every request that the contract
    allows, even with each character escaped (12 bytes outside of Unicode's basic plane)."""
