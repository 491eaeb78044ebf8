"""Versions of passwords, sealed responses of refreshes, and counts that decrease over time."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    version = sa.Column("password_version", sa.Integer, nullable=False, server_default="1")
    op.add_column("users", version)
    op.add_column("sessions", sa.Column("answer", sa.LargeBinary))
    op.create_index(
        "sessions_answered",
        "sessions",
        ["refreshed_at"],
        postgresql_where=sa.text("answer IS NOT NULL"),
    )
    op.alter_column("login_failures", "count", type_=sa.Float)


def downgrade() -> None:
    """Delete the counts of failures: the previous revision uses other keys."""
    op.execute("DELETE FROM login_failures")
    op.alter_column("login_failures", "count", type_=sa.Integer, postgresql_using="count::integer")
    op.drop_index("sessions_answered", "sessions")
    op.drop_column("sessions", "answer")
    op.drop_column("users", "password_version")
