"""Free TCP ports on the loopback address; each start reuses the previous ports if possible."""

import json
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

HOST = "127.0.0.1"
_RANGE = range(20000, 30000)  # below the ephemeral port range


def is_free(port: int) -> bool:
    """Return whether a server can listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT is no obstacle
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a free port."""
    while not is_free(port := secrets.choice(_RANGE)):
        pass
    return port


def accepts(port: int) -> bool:
    """Return whether a server listens on the port."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((HOST, port)) == 0


def remembered(file: Path) -> dict[str, int]:
    """Return the ports of the last start, by name; empty before the first start."""
    with suppress(OSError, ValueError):
        return {str(name): int(port) for name, port in json.loads(file.read_text()).items()}
    return {}


def choose(file: Path, names: Sequence[str]) -> dict[str, int]:
    """Return a free port for each name: the previous one if it is free."""
    before = remembered(file)
    ports: dict[str, int] = {}
    for name in names:
        port = before.get(name) or free_port()
        while port in ports.values() or not is_free(port):
            port = free_port()
        ports[name] = port
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(ports))
    return ports
