"""The command that the Connect conformance runner starts: server.py PORT LIMIT.

It reads a ServerCompatRequest from stdin and writes a ServerCompatResponse with the port of the
gateway to stdout, each behind its length (connectrpc/conformance/v1/server_compat.proto). The
gateway already runs: the runner waits only 10 seconds for the response.
"""

import signal
import struct
import sys
from typing import Final

from connectrpc.conformance.v1 import ServerCompatRequest, ServerCompatResponse

from shared.wire import decode, encode

_LENGTH: Final = struct.Struct(">I")


def main(port: int, limit: int) -> None:
    """Answer the runner, and wait for SIGTERM."""
    [size] = _LENGTH.unpack(sys.stdin.buffer.read(_LENGTH.size))
    request = decode(ServerCompatRequest, sys.stdin.buffer.read(size))
    if request.use_tls or request.message_receive_limit != limit:
        sys.exit(f"the gateway has no TLS and the limit {limit}: {request}")
    response = encode(ServerCompatResponse(host="127.0.0.1", port=port))
    sys.stdout.buffer.write(_LENGTH.pack(len(response)) + response)
    sys.stdout.buffer.flush()
    signal.pause()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
