"""`python -m gateway`: serve REST and WebSocket."""

import uvicorn
import uvloop

from gateway.app import build_app
from gateway.limits import BoundedHttpProtocol
from gateway.settings import GatewaySettings
from gateway.websocket_protocol import WebSocketProtocol
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
        app = build_app(
            bus,
            verifier,
            max_body_bytes=settings.max_body_bytes,
            sockets=settings.socket_limits,
        )
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=BoundedHttpProtocol,
                ws=WebSocketProtocol,
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_DRAIN_SECONDS,
                ws_per_message_deflate=False,
            )
        )
        collector.settle()
        await server.serve()


if __name__ == "__main__":
    main()
