"""HTTP/1.1 of the gateway: a protocol class for uvicorn, with a reader of its own.

The measurements behind it are in the commit that added this line.
"""

from gateway.http1.limits import Clients, HttpLimits
from gateway.http1.protocol import http1

__all__ = ["Clients", "HttpLimits", "http1"]
