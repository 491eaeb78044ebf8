"""`python -m gateway`: serve REST and WebSocket."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import uvicorn
import uvloop
from starlette.types import ASGIApp

from gateway.app import build_app
from gateway.cors import Cors
from gateway.http1 import ConnectionCounts, HttpLimits, http1
from gateway.rate_limits import RateLimits, RateLimitSettings
from gateway.rate_storage import open_storage
from gateway.response_headers import transport_security
from gateway.settings import GatewaySettings
from gateway.websocket_protocol import WebSocketProtocol
from shared.access_tokens import TokenVerifier
from shared.bus.amqp import connect
from shared.runtime import gc_tuning
from shared.runtime.logs import configure_logs
from shared.runtime.settings import load
from shared.runtime.signals import STOP_SIGNALS, cancel_on_signals

_DRAIN_SECONDS: Final = 2
"""Time for running requests to end after SIGTERM."""
_START_SECONDS: Final = 5.0
"""Longest time without listening in which the gateway connects to the broker. It then listens
without a connection: /healthz and /metrics must work, and /readyz names what is missing."""
_FRAMING_BYTES: Final = 1024
"""Bytes by which a body may exceed the largest message: the message of a Connect stream is framed,
and a slightly larger message is refused by the Connect protocol, not with a bare 413."""


class _Server(uvicorn.Server):
    """Ends normally after SIGTERM or SIGINT; uvicorn's own class then raises the signal again."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn.Server."""
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def main() -> None:
    """Run until SIGTERM or SIGINT; the exit code is then 0."""
    settings = load(GatewaySettings)
    configure_logs("gateway", settings.log_format)
    with suppress(asyncio.CancelledError):
        uvloop.run(_serve(settings))


async def _serve(settings: GatewaySettings) -> None:
    cancel_on_signals()
    async with (
        connect(settings.amqp_url, "gateway", keep_events=True) as bus,
        open_storage(settings.rate_storage_url) as storage,
    ):
        verifier = TokenVerifier(settings.verification_keys)
        clients = _clients(settings)
        app = build_app(
            bus,
            verifier,
            max_body_bytes=settings.max_body_bytes,
            rates=RateLimits(_rate_settings(settings), storage),
            sockets=settings.socket_limits,
            unfinished=clients.unfinished,
            allowed_origins=settings.allowed_origins,
            metadata_headers=settings.metadata_headers,
            operator_networks=settings.operator_networks,
            security_contact_uri=settings.security_contact,
            start_seconds=_START_SECONDS,
        )
        server = _Server(_uvicorn_config(app, clients, settings))
        gc_tuning.freeze()
        await server.serve()


def _rate_settings(settings: GatewaySettings) -> RateLimitSettings:
    return RateLimitSettings(
        address=settings.rate_address,
        user=settings.rate_user,
        user_changes=settings.rate_user_changes,
        methods=settings.rate_methods,
    )


def _clients(settings: GatewaySettings) -> ConnectionCounts:
    return ConnectionCounts(
        total=settings.max_connections,
        per_address=settings.max_connections_per_address,
        unfinished_total=settings.max_unfinished_bytes,
        unfinished_per_address=settings.max_unfinished_bytes_per_address,
        proxies=settings.trusted_proxies,
    )


def _uvicorn_config(
    app: ASGIApp, clients: ConnectionCounts, settings: GatewaySettings
) -> uvicorn.Config:
    limits = HttpLimits(
        max_body_bytes=settings.max_body_bytes + _FRAMING_BYTES, idle_seconds=settings.idle_seconds
    )
    return uvicorn.Config(
        app,
        http=http1(limits, clients, Cors(settings.allowed_origins)),
        ws=WebSocketProtocol,
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        log_config=None,
        access_log=False,
        server_header=False,
        headers=transport_security(settings.hsts_seconds),
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        ws_per_message_deflate=False,
    )


if __name__ == "__main__":
    main()
