"""`python -m gateway`: serve REST and WebSocket."""

import uvicorn
import uvloop
from starlette.types import ASGIApp

from gateway.app import build_app
from gateway.http1 import Clients, HttpLimits, http1
from gateway.settings import GatewaySettings
from shared import collector
from shared.identity import TokenVerifier
from shared.logs import configure_logs
from shared.messagebus.amqp import connect
from shared.settings import load

_DRAIN_SECONDS = 2


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    settings = load(GatewaySettings)
    configure_logs("gateway", settings.log_format)
    uvloop.run(_serve(settings))


async def _serve(settings: GatewaySettings) -> None:
    async with connect(settings.amqp_url, "gateway", settings.amqp_plane) as bus:
        verifier = TokenVerifier(settings.verification_keys)
        app = build_app(bus, verifier, max_body_bytes=settings.max_body_bytes)
        server = uvicorn.Server(_configuration(app, settings))
        collector.settle()
        await server.serve()


def _configuration(app: ASGIApp, settings: GatewaySettings) -> uvicorn.Config:
    limits = HttpLimits(max_body_bytes=settings.max_body_bytes, idle_seconds=settings.idle_seconds)
    clients = Clients(
        total=settings.max_connections,
        per_address=settings.max_connections_per_address,
        proxies=settings.trusted_proxies,
    )
    return uvicorn.Config(
        app,
        http=http1(limits, clients),
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        ws_max_size=settings.max_body_bytes,
    )


if __name__ == "__main__":
    main()
