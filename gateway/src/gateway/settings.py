"""Configuration of the gateway."""

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Final

from pydantic import (
    Field,
    FilePath,
    StringConstraints,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import NoDecode

from gateway.http1 import HttpLimits
from gateway.rate_storage import RedisUrl
from gateway.socket_limits import SocketLimits, cost_of
from shared.runtime.settings import ServiceSettings

__all__ = ["LOOPBACK", "GatewaySettings"]

LOOPBACK: Final = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
"""The loopback networks."""

_Origin = Annotated[str, StringConstraints(pattern=r"^https?://[a-z0-9.\-\[\]:]+$")]
_HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,100}$", to_lower=True)]
_Contact = Annotated[str, StringConstraints(pattern=r"^((https://|mailto:|tel:)[\x21-\x7e]+)?$")]

_HTTP: Final = HttpLimits()
_SOCKETS: Final = SocketLimits()


class GatewaySettings(ServiceSettings):
    """See ServiceSettings."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on."""
    tls_certificate: FilePath | None = None
    """File with the certificate chain (PEM); with it, the gateway serves HTTPS only."""
    tls_key: FilePath | None = Field(default=None, validate_default=True)
    """File with the private key of the certificate (PEM, without a password)."""
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses or networks, separated by commas, of proxies in front; X-Forwarded-For and
    X-Forwarded-Proto of all other clients are ignored."""
    max_body_bytes: int = Field(_HTTP.max_body_bytes, gt=0)
    """Largest request body and WebSocket message, in bytes: enough for every request that the
    contract allows, even if each character is escaped (12 bytes outside Unicode's basic plane)."""
    idle_seconds: float = Field(_HTTP.idle_seconds, gt=0)
    """Time after which an idle connection is closed; longer than that of usual proxies (60 s)."""
    max_connections: int = Field(default=20_000, gt=0)
    """Most open connections, WebSockets included; further ones get 503."""
    max_connections_per_address: int = Field(default=1_000, gt=0)
    """Most open connections of one IPv4 address or IPv6 /64; further ones get 429. Trusted proxies
    have no such limit."""
    max_unfinished_bytes: int = Field(default=256 << 20, gt=0)
    """Most bytes of requests and WebSocket messages whose end has not arrived; the first 16 KiB of
    each connection do not count. Further ones get 503."""
    max_unfinished_bytes_per_address: int = Field(default=16 << 20, gt=0)
    """Most of these bytes of one IPv4 address or IPv6 /64; further ones get 429. Trusted proxies
    have no such limit."""
    rate_address: str = "1200/minute"
    """Requests without a valid token, by address; empty: no limit."""
    rate_user: str = "2400/minute"
    """Requests with a token, by user; empty: no limit."""
    rate_user_changes: str = "600/minute"
    """Requests with a token to methods with side effects, by user; empty: no limit. `rate_user`
    counts them too."""
    rate_methods: dict[str, str] = Field(default_factory=dict)
    """Rates of single methods by full name, as JSON; they override the contract's `rate_limit`."""
    rate_storage_url: RedisUrl | None = None
    """Redis for the counts of all gateways, redis://host:port. Unset: each gateway counts alone."""
    allowed_origins: Annotated[tuple[_Origin, ...], NoDecode] = ()
    """Origins of web pages that may use the gateway, separated by commas: https://a.example."""
    metadata_headers: Annotated[tuple[_HeaderName, ...], NoDecode] = ()
    """Header fields of requests that handlers get as `context.metadata`, separated by commas:
    accept-language, x-tenant. Handlers cannot trust them."""
    operator_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = LOOPBACK
    """Networks that may read /metrics and the parts of /readyz, separated by commas: 10.0.0.0/8."""
    hsts_seconds: int = Field(0, ge=0)
    """Time for which browsers use only HTTPS; set it if clients use only HTTPS. 0: not sent."""
    security_contact: _Contact = ""
    """URI for vulnerability reports, published in /.well-known/security.txt (RFC 9116)."""
    socket_frames_per_second: int = Field(_SOCKETS.frames_per_second, ge=1)
    """Frames of one WebSocket, sustained; a frame counts once more for each 4 KiB of payload."""
    socket_frame_burst: int = Field(_SOCKETS.frame_burst, ge=1)
    """Frames of one WebSocket in a burst, counted in the same way; raised if one message of
    `max_body_bytes` costs more."""
    socket_frames_per_client: int = Field(_SOCKETS.frames_per_client, ge=1)
    """Frames of all WebSockets of one user or, before authentication, of one address, sustained,
    counted in the same way. The burst lasts as long as that of one WebSocket."""
    sockets_per_address: int = Field(_SOCKETS.sockets_per_address, ge=1)
    """WebSockets of one IPv4 address or of one IPv6 /64 network."""
    sockets_per_user: int = Field(_SOCKETS.sockets_per_user, ge=1)
    """Authenticated WebSockets of one user."""
    subscriptions_per_socket: int = Field(_SOCKETS.subscriptions_per_socket, ge=1)
    """Subscriptions of one WebSocket."""
    subscriptions_per_user: int = Field(_SOCKETS.subscriptions_per_user, ge=1)
    """Subscriptions of one user on all WebSockets."""

    @field_validator(
        "trusted_proxies", "allowed_origins", "metadata_headers", "operator_networks", mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("metadata_headers")
    @classmethod
    def _refuse_credentials(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if {"authorization", "cookie", "proxy-authorization"} & set(value):
            raise ValueError("workers get no credentials of the client")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _require_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ip_network(part)) for part in value)

    @field_validator("tls_key")
    @classmethod
    def _require_both(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if (key is None) != (info.data.get("tls_certificate") is None):
            raise ValueError("TLS needs both files, a certificate and its key")
        return key

    @property
    def socket_limits(self) -> SocketLimits:
        """The limits of WebSockets."""
        return SocketLimits(
            frames_per_second=self.socket_frames_per_second,
            frame_burst=max(self.socket_frame_burst, cost_of(self.max_body_bytes)),
            frames_per_client=self.socket_frames_per_client,
            sockets_per_address=self.sockets_per_address,
            sockets_per_user=self.sockets_per_user,
            subscriptions_per_socket=self.subscriptions_per_socket,
            subscriptions_per_user=self.subscriptions_per_user,
        )
