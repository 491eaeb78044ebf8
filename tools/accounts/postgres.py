"""PostgreSQL: a database for each service, with an owner for migrations and a role for the worker.

The owner changes the schema; the worker reads and writes rows. Neither is a superuser, and neither
may create roles or databases.
"""

from typing import Final

import asyncpg

from tools.accounts.errors import MissingRightsError
from tools.accounts.passwords import owner_of

__all__ = ["set_up_postgres"]

_LOCK: Final = 0x506F7374627573
"""Advisory lock: concurrent changes of a role fail in PostgreSQL."""
_PLAIN: Final = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
_OF_OWNER: Final = """
DO $$ DECLARE each record; BEGIN
  FOR each IN
    SELECT c.oid::regclass AS name FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner
    WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND r.rolname <> '{owner}'
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
  LOOP EXECUTE format('ALTER TABLE %s OWNER TO "{owner}"', each.name); END LOOP;
END $$
"""
"""Tables of releases in which the superuser ran the migrations; their indexes and sequences too."""
_RIGHTS: Final = (
    'ALTER DATABASE "{database}" OWNER TO "{owner}"',
    'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC',
    'GRANT CONNECT ON DATABASE "{database}" TO "{worker}"',
    'ALTER SCHEMA public OWNER TO "{owner}"',
    "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    'GRANT USAGE ON SCHEMA public TO "{worker}"',
    _OF_OWNER,
    'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{worker}"',
    'GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO "{worker}"',
    'ALTER DEFAULT PRIVILEGES FOR ROLE "{owner}" IN SCHEMA public'
    ' GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO "{worker}"',
    'ALTER DEFAULT PRIVILEGES FOR ROLE "{owner}" IN SCHEMA public'
    ' GRANT USAGE, SELECT ON SEQUENCES TO "{worker}"',
)


async def set_up_postgres(
    url: str,
    *,
    service: str,
    database: str,
    password: str,
    owner_password: str,
    replace: bool = True,
) -> None:
    """Make or update the roles and the database of a service. `url` is an administrator's.

    An existing role with another password gets the given one if `replace`; otherwise
    MissingRightsError, as if the administrator may not do it.
    """
    roles = {service: password, owner_of(service): owner_password}
    names = {"database": database, "worker": service, "owner": owner_of(service)}
    server = await asyncpg.connect(url)
    try:
        await server.execute("SELECT pg_advisory_lock($1)", _LOCK)
        for role, secret in roles.items():
            if not replace and await _has_other_password(server, url, role, secret):
                raise MissingRightsError(
                    f"PostgreSQL has a role {role} with another password",
                    [f"ALTER ROLE \"{role}\" PASSWORD 'PASSWORD';"],
                )
            await _set_role(server, role, secret)
        await _set_database(server, url, names)
    except asyncpg.InsufficientPrivilegeError as error:
        raise MissingRightsError(f"PostgreSQL: {error}", _commands(names)) from error
    finally:
        await server.close()


async def _set_role(server: asyncpg.Connection, role: str, password: str) -> None:
    exists = await server.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role)
    secret = password.replace("'", "''")
    verb = "ALTER" if exists else "CREATE"
    await server.execute(f"{verb} ROLE \"{role}\" {_PLAIN} PASSWORD '{secret}'")


async def _set_database(server: asyncpg.Connection, url: str, names: dict[str, str]) -> None:
    await server.execute('GRANT "{owner}" TO CURRENT_USER'.format(**names))
    known = "SELECT 1 FROM pg_database WHERE datname = $1"
    if not await server.fetchval(known, names["database"]):
        await server.execute('CREATE DATABASE "{database}" OWNER "{owner}"'.format(**names))
    inside = await asyncpg.connect(url, database=names["database"])
    try:
        for statement in _RIGHTS:
            await inside.execute(statement.format(**names))
    finally:
        await inside.close()


async def _has_other_password(
    server: asyncpg.Connection, url: str, role: str, password: str
) -> bool:
    if not await server.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
        return False
    try:
        await (await asyncpg.connect(url, user=role, password=password)).close()
    except asyncpg.InvalidPasswordError:
        return True
    except asyncpg.InsufficientPrivilegeError:
        pass  # the password is right; this database is not open to the role
    return False


def _commands(names: dict[str, str]) -> list[str]:
    roles = [
        f"CREATE ROLE \"{names[each]}\" {_PLAIN} PASSWORD 'PASSWORD'"
        for each in ("worker", "owner")
    ]
    database = 'CREATE DATABASE "{database}" OWNER "{owner}"'.format(**names)
    inside = [statement.format(**names).strip() for statement in _RIGHTS if statement != _OF_OWNER]
    return [f"{each};" for each in (*roles, database, *inside)]
