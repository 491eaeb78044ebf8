"""Addresses of clients."""

from functools import lru_cache
from typing import Final

from starlette.types import Scope

from shared import addresses

__all__ = ["address_of", "network_of"]

network_of: Final = lru_cache(maxsize=4096)(addresses.network_of)
"""`shared.addresses.network_of`, cached: each request without a token needs it."""


def address_of(scope: Scope) -> str:
    """Return the address of a client, not of a trusted proxy in between; empty if unknown."""
    client = scope.get("client")
    return client[0] if client else ""
