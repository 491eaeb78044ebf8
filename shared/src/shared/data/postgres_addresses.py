"""The type of a setting with an address of PostgreSQL."""

from contextlib import suppress
from typing import Annotated, Final
from urllib.parse import parse_qs

from pydantic import AfterValidator, SecretStr

from shared.server_addresses import split_address

__all__ = ["PostgresUrl"]

_SCHEMES: Final = ("postgresql", "postgres", "postgresql+asyncpg")
_MALFORMED: Final = (
    "the address of PostgreSQL must have the form postgresql://user:password@host:port/database,"
    " with the characters : / ? # @ and % of its parts percent-encoded"
)


def _checked(url: SecretStr) -> SecretStr:
    """Return an address without the spaces around it; ValueError if it is malformed."""
    address = url.get_secret_value().strip()
    with suppress(ValueError):  # its text may contain the password
        parts = split_address(address)
        parameters = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
        ports = ",".join(parameters.get("port", ())).split(",")
        if parts.scheme in _SCHEMES and all(0 < int(port) < 2**16 for port in ports if port):
            return SecretStr(address)
    raise ValueError(_MALFORMED)


PostgresUrl = Annotated[SecretStr, AfterValidator(_checked)]
"""The address of a database, without the spaces around it.

A malformed one is refused, with an error that does not quote it.
"""
