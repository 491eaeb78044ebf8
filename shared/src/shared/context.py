"""What a handler knows of the call that it serves, and what it passes on to calls of its own."""

import time
from contextvars import ContextVar
from dataclasses import dataclass

from shared.identity import Caller, token_missing

__all__ = ["Context", "current_context", "use_context"]


@dataclass(slots=True, kw_only=True)
class Context:
    """One call of a method, or the delivery of one event."""

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
    calls: int = 0
    """How many calls the handler has made so far."""

    @property
    def user_id(self) -> str:
        """Id of the calling user; UNAUTHENTICATED if there is none."""
        if self.caller is None:
            raise token_missing()
        return self.caller.user_id

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - time.time()


_current: ContextVar[Context | None] = ContextVar("postbus_context", default=None)


def current_context() -> Context | None:
    """Return the context of the call that this task serves, if it serves one."""
    return _current.get()


class use_context:  # noqa: N801  # a context manager; contextlib's costs each call more
    """Make `context` the current one; calls made inside carry its deadline, identity and trace."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: Context) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._token = _current.set(self._context)

    def __exit__(self, *_error: object) -> None:
        _current.reset(self._token)
