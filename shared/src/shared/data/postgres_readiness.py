"""Readiness of a PostgreSQL database: the process may write, and the schema is migrated."""

from collections.abc import Awaitable, Callable
from importlib.resources import files

from shared.data.postgres_sessions import Postgres
from shared.errors import NotReadyError

__all__ = ["newest_revision", "postgres_probe"]


def newest_revision(scripts: str) -> str:
    """Return the newest revision of the Alembic scripts in package `scripts` ("users:migrations").

    Their file names begin with their revisions: 0001_users.py.
    """
    package, _, folder = scripts.partition(":")
    names = [file.name for file in (files(package) / folder / "versions").iterdir()]
    return max(name.partition("_")[0] for name in names if name.endswith(".py"))


def postgres_probe(postgres: Postgres, scripts: str) -> Callable[[], Awaitable[None]]:
    """Return a probe of `Application.probes`.

    It raises NotReadyError if the database is older than `scripts`, and UNAVAILABLE if it cannot be
    reached or written. A database of a newer program is ready.
    """
    needed, service = newest_revision(scripts), scripts.partition(":")[0]

    async def require_ready() -> None:
        stored = await postgres.stored_revision()
        if stored < needed:
            raise NotReadyError(
                f"The schema has revision {stored or 'none'} instead of {needed}."
                f" Run: python -m {service} migrate"
            )

    return require_ready
