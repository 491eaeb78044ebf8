"""The gateway of the Connect conformance suite: python -m tests.conformance.gateway LIMIT.

LIMIT is the largest message in bytes. Writes `listening on port PORT` to stdout once it serves.
"""

import asyncio
import socket
import sys
from typing import Final

import uvicorn
import uvloop

from gateway.app import build_app
from gateway.http1 import ConnectionCounts, HttpLimits, http1
from shared.access_tokens import TokenVerifier
from shared.bus.amqp import connect
from shared.runtime.settings import ServiceSettings, load

_METADATA: Final = ("x-conformance-test",)
"""The header fields that the cases send and compare."""


async def _serve(settings: ServiceSettings, limit: int) -> None:
    async with connect(settings.amqp_url, "gateway", keep_events=True) as bus:
        await bus.wait_ready()
        verifier = TokenVerifier(settings.verification_keys)
        app = build_app(bus, verifier, max_body_bytes=limit, metadata_headers=_METADATA)
        # larger than a message, so that the gateway refuses a large message and not HTTP its body
        limits = HttpLimits(max_body_bytes=2 * limit)
        protocol = http1(limits, ConnectionCounts(total=1000, per_address=1000))
        config = uvicorn.Config(app, http=protocol, log_config=None, access_log=False)
        with socket.create_server(("127.0.0.1", 0), backlog=1000) as listening:
            port = listening.getsockname()[1]
            serving = asyncio.create_task(uvicorn.Server(config).serve([listening]))
            sys.stdout.write(f"listening on port {port}\n")
            sys.stdout.flush()
            await serving


if __name__ == "__main__":
    uvloop.run(_serve(load(ServiceSettings), int(sys.argv[1])))
