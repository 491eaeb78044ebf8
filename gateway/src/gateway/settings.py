"""Configuration of the gateway."""

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Final

from pydantic import Field, StringConstraints

from shared.settings import ServiceSettings

__all__ = ["LOOPBACK", "GatewaySettings"]

LOOPBACK: Final = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))

_Origin = Annotated[str, StringConstraints(pattern=r"^https?://[a-z0-9.\-\[\]:]+$")]
_Contact = Annotated[str, StringConstraints(pattern=r"^((https://|mailto:|tel:)[\x21-\x7e]+)?$")]


class GatewaySettings(ServiceSettings):
    """See ServiceSettings."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on."""
    max_body_bytes: int = 1 << 20
    """Largest request body and WebSocket frame, in bytes."""
    allowed_origins: tuple[_Origin, ...] = ()
    """Origins whose web pages may use the gateway, as a JSON list: ["https://app.example.com"]."""
    operations_networks: tuple[IPv4Network | IPv6Network, ...] = LOOPBACK
    """Networks that may read /metrics and the parts of /readyz, as a JSON list: ["10.0.0.0/8"]."""
    hsts_seconds: int = Field(0, ge=0)
    """How long browsers keep to HTTPS; set it where clients reach the gateway over HTTPS alone."""
    security_contact: _Contact = ""
    """URI for reports of weaknesses, published in /.well-known/security.txt (RFC 9116)."""
