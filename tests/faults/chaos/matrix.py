"""The shape of the fault matrix: its rows, and the system in which they are injected."""

import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Literal

from tests.faults.chaos.servers import StartedServers
from tests.proxy import Proxy
from tests.system import System
from tests.tokens import TokenMaker

__all__ = ["GATEWAYS", "WORKERS", "NotPossibleError", "Part", "Place", "Row", "row"]

WORKERS: Final = ("posts", "posts-2", "users", "users-2")
GATEWAYS: Final = ("gateway", "gateway-2")

Part = Literal["processes", "rabbitmq", "postgresql", "mongodb", "network", "clients"]
"""The part of the system that a fault is about. Pairs of faults are about different parts."""
When = Literal["always", "all", "by name"]
"""When a row runs: in `just chaos`, in `just chaos --all`, or only if its name is given."""


class NotPossibleError(Exception):
    """Raised by a row that is not possible here; the text gives the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A running system with two processes of each kind, behind a proxy for each server."""

    system: System
    proxies: dict[str, Proxy]
    servers: StartedServers
    """The servers behind the proxies, if they can be killed and restarted."""
    management_url: str
    vhost: str
    amqp_url: str
    """The account of the operator in `vhost`, beside the proxy."""
    postgres_url: str
    """An administrator's account in the database of `users`, beside the proxy."""
    mongo_url: str
    """An administrator's account in the database of `posts`, beside the proxy."""
    tokens: TokenMaker
    dice: random.Random


Inject = Callable[[Place], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault; `allowed` seconds may pass from its end to good responses of every kind."""

    name: str
    number: str
    """Number in the matrix of the design."""
    title: str
    part: Part
    when: When
    allowed: float
    inject: Inject
    """Injects the fault; returns once it has ended. May raise NotPossibleError."""


def row(
    number: str, title: str, *, part: Part, allowed: float, when: When = "always"
) -> Callable[[Inject], Row]:
    """Return a decorator that makes a row of a function and its name."""

    def make(inject: Inject) -> Row:
        return Row(
            name=getattr(inject, "__name__", ""),
            number=number,
            title=title,
            part=part,
            when=when,
            allowed=allowed,
            inject=inject,
        )

    return make
