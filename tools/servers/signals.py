"""Signals during the clean-up of a process."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Defer signals that end the program until the end of the block; keep the block short."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the program as Ctrl-C does: with its `finally` blocks."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)


def interrupt_on_sigterm() -> None:
    """Let SIGTERM interrupt the program as SIGINT does, also if a shell has SIGINT ignored.

    asyncio has a handler of its own for SIGINT, which cancels the running task.
    """

    def interrupt(_number: int, frame: FrameType | None) -> None:
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    signal.signal(signal.SIGTERM, interrupt)


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)
