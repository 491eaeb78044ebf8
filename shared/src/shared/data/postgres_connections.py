"""Connections to PostgreSQL, for workers and migrations: one parser of addresses, asyncpg's."""

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

import asyncpg
from pydantic import SecretStr
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.data.postgres_protocol import refuse_other_servers
from shared.outbox.postgres_errors import connection_errors, replace_connections

__all__ = ["connect", "create_engine"]

_ALL_HOSTS_SECONDS: Final = 5.0
"""Longest time to try the hosts of an address, if each has a time limit."""
_NEXT_HOST: Final = (
    OSError,
    asyncpg.CannotConnectNowError,
    asyncpg.TargetServerAttributeNotMatched,
)
"""Errors after which the next host is tried, as libpq does."""


class _PooledConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection of a pooler in transaction mode: each statement belongs to a transaction."""

    async def set_type_codec(self, *args: Any, **options: Any) -> None:
        """Set a codec, as SQLAlchemy does for each new connection, by statements of its own."""
        async with self.transaction():
            await super().set_type_codec(*args, **options)


def create_engine(
    address: SecretStr, *, pooled: bool = False, connect_args: Mapping[str, Any] = {}, **pool: Any
) -> AsyncEngine:
    """Return an engine that opens its connections by `connect`.

    Its errors have no values of parameters. With `pooled`, no statement is kept by name: a pooler
    in transaction mode gives each transaction another connection of the server. A statement then
    takes two round trips instead of one.
    """
    options: dict[str, Any] = {}
    if pooled:
        options = {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": str,  # "" is the unnamed statement
            "connection_class": _PooledConnection,
        }

    async def open_connection(**arguments: Any) -> asyncpg.Connection:
        with connection_errors():
            return await connect(address, **arguments)

    engine = create_async_engine(
        "postgresql+asyncpg://",
        hide_parameters=True,
        connect_args={**connect_args, **options, "async_creator_fn": open_connection},
        **pool,
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    event.listen(engine.sync_engine, "handle_error", replace_connections)
    return engine


async def connect(
    address: SecretStr,
    *,
    timeout: float | None = None,  # noqa: ASYNC109  # asyncpg has it, for all hosts together
    **arguments: Any,
) -> asyncpg.Connection:
    """Return a new connection; raises the errors of asyncpg.

    The first host that accepts it gets it. `timeout` is the limit for each host, in seconds.

    `address` is a URL as in PostgreSQL's documentation of libpq, section 34.1.1: with several
    hosts, `sslmode`, certificates, `application_name`, a Unix socket as `host`. SQLAlchemy's
    spellings `postgresql+asyncpg://` and `ssl=` are accepted too.
    """
    refuse_other_servers()
    url = re.sub(r"^postgres(ql)?\+asyncpg://", "postgresql://", address.get_secret_value())
    url = re.sub(r"([?&])ssl=", r"\1sslmode=", url)
    if timeout is None:
        return await asyncpg.connect(url, **arguments)
    *others, last = _one_host_each(url)
    async with asyncio.timeout(_ALL_HOSTS_SECONDS):
        for each in others:
            try:
                return await asyncpg.connect(each, timeout=timeout, **arguments)
            except _NEXT_HOST:
                continue
        return await asyncpg.connect(last, timeout=timeout, **arguments)


def _one_host_each(url: str) -> list[str]:
    """Return a URL for each host of a URL, because the time limit of asyncpg is that of all hosts.

    A URL that asyncpg has to judge as a whole is returned as it is.
    """
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    user, at, hosts = parts.netloc.rpartition("@")
    if query.get("target_session_attrs") == "prefer-standby":
        return [url]
    if hosts:
        return [parts._replace(netloc=f"{user}{at}{host}").geturl() for host in hosts.split(",")]
    names, ports = query.get("host", "").split(","), query.get("port", "").split(",")
    if len(ports) == 1:
        ports *= len(names)
    if len(names) == 1 or len(ports) != len(names):
        return [url]
    places = zip(names, ports, strict=True)
    each = [query | {"host": host} | ({"port": port} if port else {}) for host, port in places]
    return [parts._replace(query=urlencode(one)).geturl() for one in each]


def _refuse_closed(connection: Any, *_: object) -> None:
    """Replace a closed connection at checkout; `pool_pre_ping` would need three round trips."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError
