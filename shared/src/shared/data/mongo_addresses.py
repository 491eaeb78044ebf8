"""The type of a setting with an address of MongoDB."""

from typing import Annotated, Final

from pydantic import AfterValidator, SecretStr
from pymongo.errors import ConfigurationError, InvalidURI
from pymongo.uri_parser import parse_uri

__all__ = ["MongoUrl"]

_MALFORMED: Final = (
    "the address of MongoDB must have the form mongodb://user:password@host:port/database, with the"
    " characters : / ? # [ ] @ and % of its parts percent-encoded"
)
_ERRORS: Final = (InvalidURI, ConfigurationError, ValueError, TypeError)
"""The errors of the driver; their texts may contain the password."""


def _checked(url: SecretStr) -> SecretStr:
    """Return an address without the spaces around it; ValueError if it is malformed."""
    address = url.get_secret_value().strip()
    place, _, options = address.partition("?")
    scheme, _, hosts = place.partition("://")
    if scheme not in ("mongodb", "mongodb+srv") or "@" in options:
        raise ValueError(_MALFORMED)
    try:
        # not as mongodb+srv, whose parser asks a name server
        database = parse_uri(f"mongodb://{hosts}")["database"]
    except _ERRORS:
        raise ValueError(_MALFORMED) from None
    if not database:
        raise ValueError(f"{_MALFORMED}; the name of the database is missing")
    if scheme == "mongodb":
        _require_valid_options(address, options)
    return SecretStr(address)


def _require_valid_options(address: str, options: str) -> None:
    try:
        parse_uri(address)
    except _ERRORS:
        names = ", ".join(each.partition("=")[0] for each in options.split("&"))
        raise ValueError(
            f"the address of MongoDB has an unknown option or an invalid value among these: {names}"
        ) from None


MongoUrl = Annotated[SecretStr, AfterValidator(_checked)]
"""The address of a database, without the spaces around it.

A malformed one, or one without the name of a database, is refused, with an error that does not
quote its account.
"""
