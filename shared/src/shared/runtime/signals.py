"""The signals that end a process."""

import asyncio
import signal
from typing import Final

__all__ = ["STOP_SIGNALS", "cancel_on_signals"]

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def cancel_on_signals() -> None:
    """Cancel this task on SIGTERM or SIGINT, so that its context managers drain and close."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if task is None:
        raise RuntimeError("call it in a task")
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, task.cancel)
