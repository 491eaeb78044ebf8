"""What the gateway is configured with."""

from pydantic import Field, SecretStr

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
    rate_address: str = "1200/minute"
    """Requests without a token, by address; empty for no limit, as below."""
    rate_user: str = "2400/minute"
    """Requests with a token, by user."""
    rate_user_changes: str = "600/minute"
    """Those of them that may change something, by user."""
    rate_methods: dict[str, str] = Field(default_factory=dict)
    """Rates of single methods by full name, as JSON, in place of the contract's `rate_limit`."""
    rate_storage_url: SecretStr | None = None
    """Redis that the gateways count in together, redis://host:port; each counts alone without."""
