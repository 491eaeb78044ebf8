"""Broker accounts through RabbitMQ's management API."""

import base64
import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from tools.accounts.errors import MissingRightsError
from tools.accounts.rights import Rights

__all__ = ["set_up_broker"]

_ANSWER_SECONDS: Final = 10
_SALT_BYTES: Final = 4
"""Of a password hash (https://www.rabbitmq.com/docs/passwords)."""
_POLICY: Final = "postbus"
_BOUNDS: Final = {
    "pattern": ".*",
    "apply-to": "queues",
    "definition": {"max-length-bytes": 256 * 2**20},
}
"""The largest backlog of each queue. The events of a consumer are then refused
(`x-overflow=reject-publish`), and stay in the outbox of their service; of dead letters, and of the
queues of one process, the oldest messages are dropped."""
_ACCOUNT_LIMITS: Final = {"max-connections": 1_000, "max-channels": 20_000}
"""The most that one account may use of what all accounts share: a process of a service has two
connections."""
_FORBIDDEN: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


def set_up_broker(
    management_url: str,
    *,
    vhost: str,
    rights: Mapping[str, Rights],
    passwords: Mapping[str, str],
    replace: bool = True,
) -> None:
    """Make or update the accounts, and give them their rights on the virtual host.

    Bounds the queues of the virtual host and the connections of each account, so that a compromised
    account can use up less of the broker.

    An existing account with another password gets the given one if `replace`; otherwise
    MissingRightsError. Raises the same if the account of the URL is not an administrator, OSError
    if the broker cannot be reached.
    """
    api = _Api(management_url)
    try:
        for name, about in rights.items():
            _set_account(api, name, passwords[name], about.tags, replace=replace)
            path = f"permissions/{quote(vhost, safe='')}/{quote(name, safe='')}"
            if api.get(path) != about.permissions() | {"user": name, "vhost": vhost}:
                api.put(path, about.permissions())
            for limit, value in _ACCOUNT_LIMITS.items():
                api.put(f"user-limits/{quote(name, safe='')}/{limit}", {"value": value})
        api.put(f"operator-policies/{quote(vhost, safe='')}/{_POLICY}", _BOUNDS)
    except urllib.error.HTTPError as error:
        if error.code not in _FORBIDDEN:
            raise
        cause = f"the broker account {api.user} is not an administrator"
        raise MissingRightsError(cause, _commands(vhost, rights)) from error


def _set_account(api: "_Api", name: str, password: str, tags: str, *, replace: bool) -> None:
    path = f"users/{quote(name, safe='')}"
    found = api.get(path)
    known = found is not None and _matches(password, str(found.get("password_hash", "")))
    if found is not None and not known and not replace:
        raise MissingRightsError(
            f"the broker has an account {name} with another password",
            [f"rabbitmqctl change_password {name} PASSWORD"],
        )
    if not known or _tags(found) != _tags({"tags": tags}):
        api.put(path, {"password": password, "tags": tags})


def _tags(account: Mapping[str, Any] | None) -> set[str]:
    tags = (account or {}).get("tags", "")  # a list since RabbitMQ 3.9
    return set(tags if isinstance(tags, list) else filter(None, tags.split(",")))


def _matches(password: str, stored: str) -> bool:
    try:
        raw = base64.b64decode(stored)
    except ValueError:
        return False
    salt = raw[:_SALT_BYTES]
    return raw[_SALT_BYTES:] == hashlib.sha256(salt + password.encode()).digest()


def _commands(vhost: str, rights: Mapping[str, Rights]) -> list[str]:
    commands = []
    for name, about in rights.items():
        commands.append(f"rabbitmqctl add_user {name} PASSWORD")
        if about.tags:
            commands.append(f"rabbitmqctl set_user_tags {name} {about.tags.replace(',', ' ')}")
        expressions = " ".join(f"'{text}'" for text in about.permissions().values())
        commands.append(f"rabbitmqctl set_permissions -p {vhost} {name} {expressions}")
        commands.append(f"rabbitmqctl set_user_limits {name} '{json.dumps(_ACCOUNT_LIMITS)}'")
    commands.append(
        f"rabbitmqctl set_operator_policy -p {vhost} --apply-to {_BOUNDS['apply-to']}"
        f" {_POLICY} '{_BOUNDS['pattern']}' '{json.dumps(_BOUNDS['definition'])}'"
    )
    return commands


class _Api:
    """The management API at a URL with user and password."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.user = unquote(parts.username or "")
        host = parts.netloc.rpartition("@")[2]
        self._base = urlunsplit((parts.scheme, host, f"{parts.path.rstrip('/')}/api", "", ""))
        login = f"{self.user}:{unquote(parts.password or '')}"
        self._authorization = f"Basic {base64.b64encode(login.encode()).decode()}"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._send("GET", path)))
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.NOT_FOUND:
                raise
            return None

    def put(self, path: str, body: Mapping[str, object]) -> None:
        self._send("PUT", path, json.dumps(body).encode())

    def _send(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {"Authorization": self._authorization, "Content-Type": "application/json"}
        request = urllib.request.Request(  # noqa: S310  # the URL is the developer's own
            f"{self._base}/{path}", data=body, headers=headers, method=method
        )
        with self._opener.open(request, timeout=_ANSWER_SECONDS) as response:
            return bytes(response.read())
