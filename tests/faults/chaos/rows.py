"""The fault matrix: all rows by name, and the ones that are not possible."""

import random
from typing import Final

from tests.faults.chaos.broker_rows import BROKER_ROWS
from tests.faults.chaos.database_rows import DATABASE_ROWS
from tests.faults.chaos.matrix import Row
from tests.faults.chaos.message_rows import MESSAGE_ROWS
from tests.faults.chaos.network_rows import NETWORK_ROWS
from tests.faults.chaos.process_rows import PROCESS_ROWS

__all__ = ["NOT_HERE", "PAIRS", "ROWS", "SECONDS", "all_runs", "default_runs", "pairs"]

SECONDS: Final = 540.0
"""Time after which `just chaos` begins no further fault; the comparison takes a minute more."""
PAIRS: Final = 8
"""Pairs of faults in `just chaos --all`."""

ROWS: Final[dict[str, Row]] = {
    each.name: each
    for each in (*PROCESS_ROWS, *BROKER_ROWS, *MESSAGE_ROWS, *DATABASE_ROWS, *NETWORK_ROWS)
}
NOT_HERE: Final = {
    "16, 17 (three members)": "MongoDB runs with one member here; a step-down of one member has the"
    " same errors, but no other member that continues",
    "28, 29": "10,000 sockets need more memory and files than a test may take; `just bench scale`"
    " opens thousands and measures their reconnect",
}
"""Rows of the matrix without a function, and the reasons."""


Runs = list[tuple[str, ...]]


def default_runs() -> Runs:
    """Return the faults of `just chaos`, one at a time."""
    return [(name,) for name, row in ROWS.items() if row.when == "always"]


def all_runs(dice: random.Random) -> Runs:
    """Return every fault that no name has to be given for, and pairs of faults."""
    return [(name,) for name, row in ROWS.items() if row.when != "by name"] + pairs(dice, PAIRS)


def pairs(dice: random.Random, count: int) -> Runs:
    """Return pairs of short faults of different parts, to inject at the same time."""
    short = [row for row in ROWS.values() if row.when == "always"]
    possible: Runs = [(a.name, b.name) for a in short for b in short if a.part < b.part]
    return dice.sample(possible, count)
