"""Profiles, sessions and follows."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from shared.data.search_terms import words

revision = "0003"
down_revision = "0002"

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    _profiles()
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column(
            "user_id", sa.String(36), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("device", sa.String(100), nullable=False),
        sa.Column("family_hash", sa.LargeBinary, nullable=False),
        sa.Column("secret_hash", sa.LargeBinary, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("refreshed_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
    )
    op.create_index("sessions_of_user", "sessions", ["user_id", "id"])
    op.create_table(
        "follows",
        sa.Column("follower_id", sa.String(36), primary_key=True),
        sa.Column("followed_id", sa.String(36), primary_key=True),
        sa.Column("followed_at", _TIME, nullable=False),
    )
    op.create_index("follows_of_followed", "follows", ["followed_id", "followed_at", "follower_id"])
    op.create_index("follows_of_follower", "follows", ["follower_id", "followed_at", "followed_id"])
    op.create_table(
        "login_failures",
        sa.Column("login_hash", sa.String(64), primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("last_at", _TIME, nullable=False, index=True),
    )


def _profiles() -> None:
    """Add the columns, and fill them for existing accounts."""
    op.alter_column("users", "username", type_=sa.String(40))
    for name, length in (("display_name", 50), ("bio", 1000), ("image_url", 500), ("search", 400)):
        column = sa.Column(name, sa.String(length), nullable=False, server_default="")
        op.add_column("users", column)
    for name in ("follower_count", "following_count"):
        op.add_column("users", sa.Column(name, sa.Integer, nullable=False, server_default="0"))
    op.add_column("users", sa.Column("version", sa.Integer, nullable=False, server_default="1"))
    op.add_column("users", sa.Column("updated_at", _TIME))
    op.execute("UPDATE users SET updated_at = created_at")
    op.alter_column("users", "updated_at", nullable=False)
    users = sa.table("users", sa.column("id"), sa.column("username"), sa.column("search"))
    rows = op.get_bind().execute(sa.select(users.c.id, users.c.username)).all()
    for row in rows:
        search = " ".join(words(row.username))
        op.execute(users.update().where(users.c.id == row.id).values(search=search))
    computed = sa.Computed("to_tsvector('simple', search)", persisted=True)
    op.add_column("users", sa.Column("words", postgresql.TSVECTOR, computed))
    op.create_index("users_words", "users", ["words"], postgresql_using="gin")


def downgrade() -> None:
    """Truncate usernames beyond 30 characters, and make them unique with a part of the id."""
    for table in ("login_failures", "follows", "sessions"):
        op.drop_table(table)
    names = ("words", "display_name", "bio", "image_url", "search")
    for name in (*names, "follower_count", "following_count", "version", "updated_at"):
        op.drop_column("users", name)
    op.execute(
        "UPDATE users SET username = left(username, 17) || '_' || right(id, 12)"
        " WHERE length(username) > 30"
    )
    op.alter_column("users", "username", type_=sa.String(30))
