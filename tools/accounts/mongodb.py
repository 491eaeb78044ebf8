"""MongoDB: a user for each service, in the service's database, that reads and writes only there."""

from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import OperationFailure

from tools.accounts.errors import MissingRightsError

__all__ = ["set_up_mongodb"]

_CHANGE: Final = "changeUserPassword"
_SELECTION_MS: Final = 5000
_UNAUTHORIZED: Final = 13
_AUTHENTICATION_FAILED: Final = 18
"""Codes of MongoDB (src/mongo/base/error_codes.yml)."""


def set_up_mongodb(
    url: str, *, service: str, database: str, password: str, replace: bool = True
) -> None:
    """Make or update the user of a service in its database. `url` is an administrator's.

    An existing user with another password gets the given one if `replace`; otherwise
    MissingRightsError, as if the administrator may not do it. The role readWrite suffices for the
    migrations: it may create collections and indexes.
    """
    users: dict[str, Any] = {"roles": [{"role": "readWrite", "db": database}]}
    try:
        with MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=_SELECTION_MS) as client:
            found = client[database].command("usersInfo", service)["users"]
            if not found:
                client[database].command("createUser", service, pwd=password, **users)
            elif not _logs_in(url, service, database, password):
                if not replace:
                    raise MissingRightsError(
                        f"MongoDB has a user {service} with another password in {database}",
                        [f'db.getSiblingDB("{database}").{_CHANGE}("{service}", PASSWORD)'],
                    )
                client[database].command("updateUser", service, pwd=password, **users)
            elif found[0]["roles"] != users["roles"]:
                client[database].command("updateUser", service, **users)
    except OperationFailure as error:
        if error.code not in {_UNAUTHORIZED, _AUTHENTICATION_FAILED}:
            raise
        raise MissingRightsError(
            f"MongoDB: the account of the address may not make users in {database}",
            [
                f'db.getSiblingDB("{database}").createUser({{user: "{service}", pwd: PASSWORD,'
                f' roles: [{{role: "readWrite", db: "{database}"}}]}})'
            ],
        ) from error


def _logs_in(url: str, user: str, database: str, password: str) -> bool:
    try:
        with MongoClient[dict[str, Any]](
            url,
            username=user,
            password=password,
            authSource=database,
            serverSelectionTimeoutMS=_SELECTION_MS,
        ) as client:
            client[database].command("ping")
    except OperationFailure as error:
        if error.code != _AUTHENTICATION_FAILED:
            raise
        return False
    return True
