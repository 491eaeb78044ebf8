"""Correlation ids of calls."""

import itertools
import os
from collections.abc import Iterator
from typing import Final

__all__ = ["correlation_ids"]

_IDS_AT_ONCE: Final = 256
"""Correlation ids per read of the system's random numbers."""


def correlation_ids() -> Iterator[str]:
    """Yield new correlation ids of 128 random bits, as 32 hex digits each.

    Any process that may publish to the reply queue could reply to a call whose id it can guess: the
    ids that one server sees must not reveal the ids of other calls.
    """
    return itertools.chain.from_iterable(iter(_random_ids, None))


def _random_ids() -> list[str]:
    digits = os.urandom(16 * _IDS_AT_ONCE).hex()
    return [digits[at : at + 32] for at in range(0, len(digits), 32)]
