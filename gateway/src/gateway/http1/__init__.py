"""HTTP/1.1 as the gateway speaks it: a protocol for uvicorn, in place of uvicorn's own.

Why not a parser from a package: see the numbers in `protocol`.
"""

from gateway.http1.limits import Clients, HttpLimits
from gateway.http1.protocol import http1

__all__ = ["Clients", "HttpLimits", "http1"]
