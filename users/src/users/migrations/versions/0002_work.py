"""Inbox and outbox: executed operations, and events to publish."""

from alembic import op

from shared.outbox.postgres_tables import create_inbox_and_outbox, drop_inbox_and_outbox

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    create_inbox_and_outbox(op.get_bind())


def downgrade() -> None:
    drop_inbox_and_outbox(op.get_bind())
