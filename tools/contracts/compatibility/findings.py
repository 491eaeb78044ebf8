"""Changes of a contract, and the audiences that they break."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import NamedTuple

from tools.contracts.compatibility.kinds import Kind

__all__ = [
    "Audience",
    "Breaks",
    "Change",
    "Direction",
    "Finding",
    "Use",
    "bus",
    "callers",
    "consumers",
    "every_use",
    "json",
    "json_callers",
    "readers",
    "rest",
]


class Audience(StrEnum):
    """The readers or writers of a message that a change breaks."""

    REST = "REST client"
    WEBSOCKET = "WebSocket client"
    WORKER = "worker"
    CONSUMER = "event consumer"
    CODE = "generated code"


class Direction(Enum):
    """The direction of a message: an audience writes requests and reads responses and events."""

    REQUEST = "request"
    RESPONSE = "response"


class Use(NamedTuple):
    """The use of a message by an audience; `event` is the name of the event that holds it."""

    audience: Audience
    direction: Direction
    event: str = ""


Breaks = Callable[[Use], bool]
"""Returns whether a change breaks a use."""


def every_use(_use: Use) -> bool:
    """Return True: the change breaks every use."""
    return True


def callers(use: Use) -> bool:
    """Return whether the audience writes the message, which may now be refused."""
    return use.direction is Direction.REQUEST


def readers(use: Use) -> bool:
    """Return whether the audience reads the message, and relies on its rules."""
    return use.direction is Direction.RESPONSE


def json(use: Use) -> bool:
    """Return whether the audience uses proto3 JSON, with names instead of numbers."""
    return use.audience in (Audience.REST, Audience.WEBSOCKET)


def json_callers(use: Use) -> bool:
    """Return whether the audience writes proto3 JSON."""
    return json(use) and callers(use)


def bus(use: Use) -> bool:
    """Return whether the audience uses binary messages, with numbers instead of names."""
    return not json(use)


def rest(use: Use) -> bool:
    """Return whether the audience uses HTTP."""
    return use.audience is Audience.REST


def consumers(use: Use) -> bool:
    """Return whether the audience consumes events on the bus."""
    return use.audience is Audience.CONSUMER


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A difference of `name` that breaks the uses selected by `breaks`; a notice breaks none.

    `detail` names the part that has changed, such as a rule or a route. `relaxes`: the change is
    a looser limit, and only a notice if clients also write the message: no message that is both
    written and read could ever get a looser limit otherwise.
    """

    name: str
    kind: Kind
    before: str
    after: str
    detail: str = ""
    breaks: Breaks = every_use
    notice: bool = False
    relaxes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A change and the audiences that it breaks; a notice breaks none, but needs attention."""

    where: str
    text: str
    kind: Kind
    audiences: frozenset[Audience]
    notice: bool = False
