"""Declarations of exchanges, queues and bindings, and the broker's refusal of one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from pamqp.base import Frame
from pamqp.commands import Exchange as ExchangeClass
from pamqp.commands import Queue as QueueClass

__all__ = ["Binding", "Exchange", "Queue", "TopologyError"]

_INEQUIVALENT: Final = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for \w+ '(?P<name>[^']+)'.*?: received (?P<ours>.*?)"
    r" but current is (?P<theirs>.*)",
    re.DOTALL,
)


class TopologyError(RuntimeError):
    """A queue exists at the broker with other arguments than this version needs."""

    @classmethod
    def of_refusal(cls, refusal: str) -> Self:
        """Return the error for the broker's refusal to declare a queue; it names the difference."""
        found = _INEQUIVALENT.search(refusal)
        if found is None:
            return cls(f"The broker refuses a declaration: {refusal}")
        ours, theirs = (_value(found[side]) for side in ("ours", "theirs"))
        return cls(
            f"The queue {found['name']} has {found['argument']} {theirs} at the broker,"
            f" and {ours} in this version."
        )


def _value(text: str) -> str:
    value = re.search(r"value '([^']*)'", text)
    return value[1] if value else text.strip().strip("'\"").removesuffix('")')


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: str

    def methods(self, *, passive: bool = False) -> Iterator[Frame]:
        """Return the method that declares it, or only checks that it exists."""
        yield ExchangeClass.Declare(
            exchange=self.name, exchange_type=self.type, durable=True, passive=passive
        )


@dataclass(frozen=True, slots=True)
class Binding:
    """A binding of a queue to an exchange."""

    queue: str
    exchange: str
    key: str

    def methods(self, *, passive: bool = False) -> Iterator[Frame]:
        """Return the method that declares it; no method only checks that it exists."""
        yield QueueClass.Bind(queue=self.queue, exchange=self.exchange, routing_key=self.key)

    def removal(self) -> Frame:
        """Return the method that removes it."""
        return QueueClass.Unbind(queue=self.queue, exchange=self.exchange, routing_key=self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue with its bindings to exchanges of its own service.

    Bindings to the exchanges of another service are made apart: they may be missing.
    """

    name: str
    arguments: Mapping[str, str | int]
    bindings: Sequence[Binding] = ()
    auto_delete: bool = False
    exclusive: bool = False
    """Whether the queue belongs to its connection and is deleted with it. It is not durable."""
    transient: bool = False
    """Whether the queue is deleted with its node. In a cluster, another node can then have it."""
    own_exchange: bool = False
    """Whether a fanout exchange of the same name belongs to the queue."""

    def methods(self, *, passive: bool = False) -> Iterator[Frame]:
        """Return the methods that declare it and its bindings, or only check that it exists."""
        if self.own_exchange:
            yield from Exchange(self.name, "fanout").methods(passive=passive)
        yield QueueClass.Declare(
            queue=self.name,
            passive=passive,
            durable=not (self.exclusive or self.transient),
            exclusive=self.exclusive,
            auto_delete=self.auto_delete,
            arguments=dict(self.arguments),
        )
        for binding in self.bindings:
            yield from binding.methods()
