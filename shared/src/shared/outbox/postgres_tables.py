"""The tables `inbox`, `outbox` and `versions` of a service with PostgreSQL."""

import sqlalchemy as sa

__all__ = ["create_inbox_and_outbox", "drop_inbox_and_outbox"]

_metadata = sa.MetaData()

sa.Table(
    "inbox",
    _metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    sa.Column("reply", sa.LargeBinary),
    sa.Column(
        "done_at",
        sa.DateTime(timezone=True),
        nullable=False,
        server_default=sa.func.now(),
        index=True,
    ),
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


def create_inbox_and_outbox(connection: sa.Connection) -> None:
    """Create the tables. In a migration: `create_inbox_and_outbox(op.get_bind())`."""
    _metadata.create_all(connection)


def drop_inbox_and_outbox(connection: sa.Connection) -> None:
    """Drop the tables that `create_inbox_and_outbox` created."""
    _metadata.drop_all(connection)
