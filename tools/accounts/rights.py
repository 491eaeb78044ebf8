"""The rights of each broker account, from the graph of calls.

RabbitMQ compares three regular expressions with the names of exchanges and queues
(https://www.rabbitmq.com/docs/access-control): `configure` to declare and delete, `write` to
publish to an exchange and to bind a queue, `read` to consume a queue and to bind to an exchange.
`shared.bus.amqp.topology` gives the exchanges and queues their names.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Final

__all__ = ["OPERATOR", "Rights", "broker_rights"]

OPERATOR: Final = "operator"
"""Account with all rights on a virtual host. It may call every service, and replay dead letters in
the name of their consumer: RabbitMQ's tag `impersonator`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """Three regular expressions, and the tags of the account, separated by commas."""

    configure: str
    write: str
    read: str
    tags: str = ""

    def permissions(self) -> dict[str, str]:
        """Return the expressions as the management API takes them."""
        return {name: text for name, text in asdict(self).items() if name != "tags"}


def broker_rights(calls: Mapping[str, Collection[str]]) -> dict[str, Rights]:
    """Return the rights by account; `calls` has the services that each service calls."""
    everything = Rights(configure=".*", write=".*", read=".*", tags="impersonator,management")
    return {service: _rights(service, calls) for service in calls} | {OPERATOR: everything}


def _rights(service: str, calls: Mapping[str, Collection[str]]) -> Rights:
    callees = sorted(calls[service])
    callers = sorted([name for name in calls if service in calls[name]] + [OPERATOR])
    own = rf"{service}\..+"
    return Rights(
        configure=_names(own, _exchange("calls|replies|control|retry|dead|events", service)),
        write=_names(
            own,
            _exchange("events|retry|dead", service),
            *([_exchange("calls|control", "|".join(callees))] if callees else []),
            _exchange("replies", "|".join(callers)),
        ),
        read=_names(
            own,
            _exchange("calls|replies|control|retry|dead", service),
            r"postbus\.events\.[^.]+",
            r"gateway\.events",
        ),
    )


def _exchange(kinds: str, services: str) -> str:
    return rf"postbus\.({kinds})\.({services})"


def _names(*expressions: str) -> str:
    return f"^({'|'.join(expressions)})$"
