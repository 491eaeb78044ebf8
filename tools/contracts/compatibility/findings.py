"""Who breaks, and by what."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import NamedTuple

__all__ = [
    "Audience",
    "Breaks",
    "Change",
    "Direction",
    "Finding",
    "Use",
    "anyone",
    "bus",
    "callers",
    "json",
    "json_callers",
    "readers",
]


class Audience(StrEnum):
    """Who relies on the contracts."""

    REST = "REST client"
    WEBSOCKET = "WebSocket client"
    WORKER = "worker"
    CONSUMER = "event consumer"
    CODE = "generated code"


class Direction(Enum):
    """Which way a message goes: those who rely on it write what is asked, and read answers."""

    ASKED = "asked"
    ANSWERED = "answered"


class Use(NamedTuple):
    """Someone writes or reads a message; `event` names the event that it is part of."""

    audience: Audience
    direction: Direction
    event: str = ""


Breaks = Callable[[Use], bool]
"""Picks the uses that a change breaks."""


def anyone(_use: Use) -> bool:
    """Both ways, in JSON and in binary."""
    return True


def callers(use: Use) -> bool:
    """Those who write it: what was right is refused."""
    return use.direction is Direction.ASKED


def readers(use: Use) -> bool:
    """Those who read it: what they rely on no longer holds."""
    return use.direction is Direction.ANSWERED


def json(use: Use) -> bool:
    """Those who see proto3 JSON: names instead of numbers."""
    return use.audience in (Audience.REST, Audience.WEBSOCKET)


def json_callers(use: Use) -> bool:
    """Those who write proto3 JSON."""
    return json(use) and callers(use)


def bus(use: Use) -> bool:
    """Those who see binary messages: numbers instead of names."""
    return not json(use)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What differs, of `name`; it breaks the uses that `breaks` picks, unless it is a notice."""

    name: str
    what: str
    before: str
    after: str
    breaks: Breaks = anyone
    notice: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A change and those whom it breaks; a notice breaks nobody but is to be known."""

    where: str
    text: str
    audiences: frozenset[Audience]
    notice: bool = False
