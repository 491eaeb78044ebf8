"""Client addresses of requests, and the networks that limits count them by."""

from functools import lru_cache
from typing import Final

from starlette.types import Scope

from shared import addresses

__all__ = ["address_of", "network_of"]

network_of: Final = lru_cache(maxsize=4096)(addresses.network_of)
"""`shared.addresses.network_of`, cached, because each request without a token calls it."""


def address_of(scope: Scope) -> str:
    """Return the client's address, not that of a trusted proxy; empty if it is unknown."""
    client = scope.get("client")
    return client[0] if client else ""
