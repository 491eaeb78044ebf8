"""HTTP/1.1 of the gateway: a protocol class for uvicorn, with its own parser.

CPU per request in microseconds, for a GET with five fields and a token of 340 bytes, and for a POST
of 300 bytes with the same token, with a bare ASGI application on uvloop and Python 3.11. "In
memory" uses a transport that does nothing; values over TCP vary by about 10 %.

| protocol | in memory: GET, POST | over TCP: GET, POST |
| --- | --- | --- |
| this one, with all rules and limits | 19.0, 19.3 | 27.6 to 31.6, 28.9 to 33.2 |
| uvicorn with httptools 0.9, without them | 17.5, 18.0 | 30.8 to 34.6, 29.9 to 30.8 |
| uvicorn with zttp 0.0.35 (declares itself experimental) | 15.5, 16.9 | 30.6, 31.0 |
| uvicorn with h11 0.16 | 73, 79 | 107, 110 |

Parsing a head takes 2.3 with httptools and uvicorn's callbacks, 1.8 with gunicorn_h1c 0.6
(picohttpparser), 2.0 with zttp, 25 with h11, and 4.9 with this parser and its rules.
"""

from gateway.http1.http_limits import ConnectionCounts, HttpLimits
from gateway.http1.protocol import http1

__all__ = ["ConnectionCounts", "HttpLimits", "http1"]
