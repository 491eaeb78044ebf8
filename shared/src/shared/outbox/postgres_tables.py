"""The tables `inbox`, `outbox` and `versions` of a service with PostgreSQL."""

from typing import Final

import sqlalchemy as sa

__all__ = [
    "add_reply_owners",
    "add_retries_to_outbox",
    "create_inbox_and_outbox",
    "drop_inbox_and_outbox",
    "remove_retries_from_outbox",
]

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
    sa.Column("subject", sa.String, nullable=False, server_default=""),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column(
        "retry_at",
        sa.DateTime(timezone=True),
        nullable=False,
        server_default=sa.text("'-infinity'"),
    ),
    sa.Index("outbox_due", "retry_at", "id"),
    sa.Index("outbox_refused", "subject", "id", postgresql_where=sa.text("retry_at > '-infinity'")),
)
sa.Table(
    "versions",
    _metadata,
    sa.Column("subject", sa.String(64), primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
)

_ADD_RETRIES: Final = (
    "ALTER TABLE outbox ADD COLUMN IF NOT EXISTS subject varchar NOT NULL DEFAULT ''",
    "ALTER TABLE outbox ADD COLUMN IF NOT EXISTS attempts integer NOT NULL DEFAULT 0",
    "ALTER TABLE outbox ADD COLUMN IF NOT EXISTS retry_at timestamptz NOT NULL DEFAULT '-infinity'",
    "CREATE INDEX IF NOT EXISTS outbox_due ON outbox (retry_at, id)",
    "CREATE INDEX IF NOT EXISTS outbox_refused ON outbox (subject, id)"
    " WHERE retry_at > '-infinity'",
)


_ADD_OWNERS: Final = (
    "ALTER TABLE inbox ADD COLUMN IF NOT EXISTS owner varchar(64)",
    "CREATE INDEX IF NOT EXISTS inbox_owner ON inbox (owner) WHERE owner IS NOT NULL",
)


def add_reply_owners(connection: sa.Connection) -> None:
    """Add the column and index of the owners of replies to tables of an older version."""
    for statement in _ADD_OWNERS:
        connection.execute(sa.text(statement))


def create_inbox_and_outbox(connection: sa.Connection) -> None:
    """Create the tables. In a migration: `create_inbox_and_outbox(op.get_bind())`."""
    _metadata.create_all(connection)


def add_retries_to_outbox(connection: sa.Connection) -> None:
    """Add the columns and indexes of refused events to the table of an older version."""
    for statement in _ADD_RETRIES:
        connection.execute(sa.text(statement))


def remove_retries_from_outbox(connection: sa.Connection) -> None:
    """Remove the columns and indexes of `add_retries_to_outbox`."""
    for column in ("subject", "attempts", "retry_at"):  # with their indexes
        connection.execute(sa.text(f"ALTER TABLE outbox DROP COLUMN {column}"))


def drop_inbox_and_outbox(connection: sa.Connection) -> None:
    """Drop the tables that `create_inbox_and_outbox` created."""
    _metadata.drop_all(connection)
