"""The revision: a counter of the changes that other services keep in projections."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    column = sa.Column("revision", sa.BigInteger, nullable=False, server_default="0")
    op.add_column("users", column)


def downgrade() -> None:
    op.drop_column("users", "revision")
