"""Inbox and outbox: executed operations, and events to publish."""

from alembic import op

from shared.outbox.postgres_outbox import create_work_tables, drop_work_tables

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    create_work_tables(op.get_bind())


def downgrade() -> None:
    drop_work_tables(op.get_bind())
