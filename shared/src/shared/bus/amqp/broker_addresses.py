"""The address of the broker, which may name several nodes of one cluster."""

import re
from contextlib import suppress
from typing import Final

from yarl import URL

__all__ = ["BrokerAddressError", "broker_addresses"]

_SCHEMES: Final = ("amqp", "amqps")
_FORM: Final = "amqp://user:password@host:port,host:port/vhost"
_URL: Final = re.compile(r"(?P<scheme>[^:/]*)://(?P<authority>[^/?#]*)(?P<rest>[^#]*)")
_MALFORMED: Final = (
    f"the address of the broker must have the form {_FORM}, with the characters / ? # and % of its"
    " parts percent-encoded"
)
_NO_ACCOUNT: Final = f"the address of the broker has no {{}}; it must have the form {_FORM}"


class BrokerAddressError(ValueError):
    """Raised if the address of the broker is malformed. The text has no password."""


def broker_addresses(address: str) -> list[URL]:
    """Return a URL for each host of `address`, in its order and without duplicates.

    `amqp://user:password@host1:5672,host2:5673/vhost` names two nodes of a cluster; account,
    virtual host and options are those of all. The scheme `amqps` stands for TLS. Spaces around the
    address are ignored. Raises BrokerAddressError, also without a user or a password: aiormq would
    log in as `guest`.
    """
    found = _URL.fullmatch(address.strip())
    if found is None or found["scheme"].lower() not in _SCHEMES:
        raise BrokerAddressError(_MALFORMED)
    account, at, hosts = found["authority"].rpartition("@")
    if not at and "@" in found["rest"]:  # the account has one of the characters
        raise BrokerAddressError(_MALFORMED)
    return [
        _url(f"{found['scheme']}://{account}{at}{host}{found['rest']}", host if at else "")
        for host in dict.fromkeys(each.strip() for each in hosts.split(","))
    ]


def _url(text: str, host: str) -> URL:
    """Return a URL; `host` is quoted in the error, so it must not be a part of the account."""
    url = None
    with suppress(ValueError):  # its text may contain the password
        url = URL(text)
    if url is None or not url.host or url.port == 0:
        named = f"; it has an invalid host or port {host!r}" if host else ""
        raise BrokerAddressError(_MALFORMED + named)
    if missing := " and no ".join(each for each in ("user", "password") if not getattr(url, each)):
        raise BrokerAddressError(_NO_ACCOUNT.format(missing))
    return url
