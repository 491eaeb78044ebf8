"""The tables `inbox`, `outbox` and `versions` of a service with PostgreSQL."""

from typing import Final

import sqlalchemy as sa

__all__ = ["add_reply_owners", "create_inbox_and_outbox", "drop_inbox_and_outbox"]

_metadata = sa.MetaData()

sa.Table(
    "inbox",
    _metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    sa.Column("reply", sa.LargeBinary),
    sa.Column("owner", sa.String(64)),
    sa.Column(
        "done_at",
        sa.DateTime(timezone=True),
        nullable=False,
        server_default=sa.func.now(),
        index=True,
    ),
    sa.Index("inbox_owner", "owner", postgresql_where=sa.text("owner IS NOT NULL")),
)
sa.Table(
    "outbox",
    _metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("event", sa.LargeBinary, nullable=False),
)
sa.Table(
    "versions",
    _metadata,
    sa.Column("subject", sa.String(64), primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
)


_ADD_OWNERS: Final = (
    "ALTER TABLE inbox ADD COLUMN IF NOT EXISTS owner varchar(64)",
    "CREATE INDEX IF NOT EXISTS inbox_owner ON inbox (owner) WHERE owner IS NOT NULL",
)


def add_reply_owners(connection: sa.Connection) -> None:
    """Add what the tables of a release without owners of replies lack."""
    for statement in _ADD_OWNERS:
        connection.execute(sa.text(statement))


def create_inbox_and_outbox(connection: sa.Connection) -> None:
    """Create the tables. In a migration: `create_inbox_and_outbox(op.get_bind())`."""
    _metadata.create_all(connection)


def drop_inbox_and_outbox(connection: sa.Connection) -> None:
    """Drop the tables that `create_inbox_and_outbox` created."""
    _metadata.drop_all(connection)
