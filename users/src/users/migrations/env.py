"""Entry point of Alembic."""

from sqlmodel import SQLModel

import users.models  # noqa: F401  # fills SQLModel.metadata
from shared.data.alembic_migrations import run_scripts

run_scripts(SQLModel.metadata)
