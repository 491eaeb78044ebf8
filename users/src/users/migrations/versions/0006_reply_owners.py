"""The owners of stored replies, so that the erasure of a user finds them."""

from alembic import op

from shared.outbox.postgres_tables import add_reply_owners

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    add_reply_owners(op.get_bind())


def downgrade() -> None:
    op.drop_index("inbox_owner", "inbox")
    op.drop_column("inbox", "owner")
