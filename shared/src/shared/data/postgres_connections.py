"""Connections to PostgreSQL, for workers and migrations: one parser of addresses, asyncpg's."""

import re
from collections.abc import Mapping
from typing import Any

import asyncpg
from pydantic import SecretStr
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.outbox.postgres_errors import connection_errors, replace_connections

__all__ = ["connect", "create_engine"]


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


async def connect(address: SecretStr, **arguments: Any) -> asyncpg.Connection:
    """Return a new connection; raises the errors of asyncpg.

    `address` is a URL as in PostgreSQL's documentation of libpq, section 34.1.1: with several
    hosts, `sslmode`, certificates, `application_name`, a Unix socket as `host`. SQLAlchemy's
    spellings `postgresql+asyncpg://` and `ssl=` are accepted too.
    """
    url = re.sub(r"^postgres(ql)?\+asyncpg://", "postgresql://", address.get_secret_value())
    url = re.sub(r"([?&])ssl=", r"\1sslmode=", url)
    return await asyncpg.connect(url, **arguments)


def _refuse_closed(connection: Any, *_: object) -> None:
    """Replace a closed connection at checkout; `pool_pre_ping` would need three round trips."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError
