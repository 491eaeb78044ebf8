"""MongoDB's replica set of one member, and its administrator: at the first start, and later."""

from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from tools.servers.ports import HOST

__all__ = ["set_up"]

_TIMEOUT_MS: Final = 1000
_AUTHENTICATION_FAILED, _ALREADY_INITIALISED, _NOT_INITIALISED = 18, 23, 94
"""Codes of MongoDB (src/mongo/base/error_codes.yml)."""

Client = MongoClient[dict[str, Any]]


def set_up(port: int, user: str, password: str, *, name: str) -> bool:
    """Return whether the member is primary; configure what is missing.

    While the server has no user, clients of its own machine may initiate the replica set and create
    the first user (MongoDB: Localhost Exception).
    """
    options: dict[str, Any] = {"directConnection": True, "serverSelectionTimeoutMS": _TIMEOUT_MS}
    login: dict[str, Any] = {"username": user, "password": password}
    try:
        with (
            Client(HOST, port, **options) as client,
            Client(HOST, port, **options, **login) as admin,
        ):
            state = client.admin.command("hello")
            primary = bool(state["isWritablePrimary"])
            if not _logs_in(admin):
                if state.get("isreplicaset"):
                    _initiate(client, name, f"{HOST}:{port}")
                elif primary:
                    client.admin.command("createUser", user, pwd=password, roles=["root"])
            elif state.get("isreplicaset"):
                _update_port(admin, f"{HOST}:{port}")
            return primary
    except PyMongoError:
        return False


def _logs_in(client: Client) -> bool:
    try:
        client.admin.command("ping")
    except OperationFailure as error:
        if error.code != _AUTHENTICATION_FAILED:
            raise
        return False
    return True


def _initiate(client: Client, name: str, host: str) -> None:
    try:
        config = {"_id": name, "members": [{"_id": 0, "host": host}]}
        client.admin.command("replSetInitiate", config)
    except OperationFailure as error:
        if error.code != _ALREADY_INITIALISED:  # the server reads its configuration just now
            raise


def _update_port(admin: Client, host: str) -> None:
    try:
        config = admin.admin.command("replSetGetConfig")["config"]
    except OperationFailure as error:
        if error.code != _NOT_INITIALISED:  # the server reads its configuration just now
            raise
        return
    if config["members"][0]["host"] != host:
        config["members"][0]["host"] = host
        config["version"] += 1
        admin.admin.command("replSetReconfig", config, force=True)
