"""Processes with wrong clocks, by libfaketime."""

from pathlib import Path
from typing import Final

from tools.servers.packages import UNPACKED, provide

__all__ = ["clock_settings", "find_faketime"]

_LIBRARY: Final = "usr/lib/*/faketime/libfaketimeMT.so.1"


def find_faketime() -> str:
    """Return the path of libfaketime: of the system, or from its package.

    Raises ServersUnavailableError if the package cannot be fetched.
    """
    if not (found := list(Path("/").glob(_LIBRARY))):
        provide(["libfaketime"])
        found = list(UNPACKED.glob(_LIBRARY))
    return str(found[0])


def clock_settings(faketime: str, seconds: int) -> dict[str, str]:
    """Return variables that set a clock ahead by seconds; the monotonic clock is right."""
    return {
        "LD_PRELOAD": faketime,
        "FAKETIME": f"{seconds:+}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
