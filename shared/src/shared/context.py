"""What a handler knows of the call that it serves, and what it passes on to calls of its own."""

import asyncio
import time
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from shared.errors import Outcome, deadline_exceeded
from shared.identity import Caller, token_missing

__all__ = ["Context", "current_context"]


@dataclass(slots=True, kw_only=True)
class Context:
    """One call of a method, or the delivery of one event.

    `with context:` serves it: calls made inside carry its deadline, identity and trace, and at the
    deadline the task is cancelled and the block raises DEADLINE_EXCEEDED, as it does at once if the
    deadline has passed. (asyncio.timeout costs each call three times as much.)
    """

    name: str
    """Full name of the method or event."""
    caller: Caller | None = None
    access_token: str = ""
    deadline: float
    """When the caller stops waiting, in seconds since the epoch."""
    operation_id: str = ""
    """Names the operation; of an event its id."""
    correlation_id: str = ""
    """The operation that it all began with."""
    traceparent: str
    client_address: str = ""
    """Address of the gateway's client; empty if not known. Not verified, and not passed on."""
    calls: int = 0
    """How many calls the handler has made so far."""
    caller_revision: int = 0
    """Highest known revision of the caller's account: from the Request, raised by the answers to
    calls made inside. A handler that changes or reads the revision raises it by `learn_revision`;
    the Reply then carries it."""
    late: bool = False
    """Of an event: a later one of the same subject was handled before, see EventPattern."""
    changed: bool = False
    """Whether one of them may have changed something, wherever it went."""
    _expired: bool = field(default=False, init=False)
    _task: asyncio.Task[Any] = field(init=False)
    _cancelling: int = field(init=False)
    _timer: asyncio.TimerHandle = field(init=False)
    _outer: "Token[Context | None]" = field(init=False)

    @property
    def user_id(self) -> str:
        """Id of the calling user; UNAUTHENTICATED if there is none."""
        return self.require_caller().user_id

    def require_caller(self) -> Caller:
        """Return the caller; UNAUTHENTICATED if there is none."""
        if self.caller is None:
            raise token_missing()
        return self.caller

    def learn_revision(self, revision: int) -> None:
        """Take a revision of the caller's account as known."""
        self.caller_revision = max(self.caller_revision, revision)

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - time.time()

    def __enter__(self) -> None:
        remaining = self.deadline - time.time()
        if remaining <= 0:
            raise deadline_exceeded(Outcome.NO_EFFECT)
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a context needs a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = task.get_loop().call_later(remaining, self._expire)
        self._outer = _current.set(self)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        _current.reset(self._outer)
        if not self._expired:
            return
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise deadline_exceeded() from None


_current: ContextVar[Context | None] = ContextVar("postbus_context", default=None)


def current_context() -> Context | None:
    """Return the context of the call that this task serves, if it serves one."""
    return _current.get()
