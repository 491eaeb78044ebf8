"""Refused events in the outbox: the time of their next attempt."""

from alembic import op

from shared.outbox.postgres_tables import add_retries_to_outbox, remove_retries_from_outbox

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    add_retries_to_outbox(op.get_bind())


def downgrade() -> None:
    remove_retries_from_outbox(op.get_bind())
