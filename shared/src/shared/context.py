"""The context of the current call: identity, deadline and trace, inherited by nested calls."""

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

from uuid_utils import NAMESPACE_OID, uuid5

from shared.access_tokens import Caller, token_missing
from shared.errors import Outcome, deadline_exceeded
from shared.metadata import NO_METADATA, Metadata, OutgoingMetadata

__all__ = ["Context", "current_context"]


@dataclass(slots=True, kw_only=True)
class Context:
    """The call of a method or the delivery of an event that a handler processes.

    Calls made inside `with context:` inherit its deadline, identity and trace. At the deadline the
    task is cancelled and the block raises DEADLINE_EXCEEDED; entering the block after the deadline
    raises it immediately. (asyncio.timeout takes three times as long.)
    """

    name: str
    """Full name of the method or event."""
    caller: Caller | None = None
    calling_service: str = ""
    """The service that has sent the call, verified by the broker; empty for an event."""
    access_token: str = ""
    deadline: float
    """When the handler is stopped, by `time.monotonic()`: the budget is measured from the arrival
    of the request, because the clocks of two processes differ."""
    operation_id: str = ""
    """The operation id of the call, or the id of the event."""
    correlation_id: str = ""
    """The operation id of the first call of the chain."""
    traceparent: str
    client_address: str = ""
    """Address of the gateway's client; empty if unknown. Not verified, and not inherited."""
    caller_revision: int = 0
    """Highest known revision of the caller's account: from the Request, raised by the replies to
    nested calls. A handler that changes or reads the revision raises it by `raise_revision`; the
    Reply then carries it."""
    received_metadata: Metadata | None = None
    """See `metadata`; None for none."""
    has_client_timeout: bool = False
    """Whether the client has chosen the budget; else it is the default of the method."""
    reply_headers: OutgoingMetadata | None = field(default=None, init=False)
    """What the handler has added to `headers`."""
    reply_trailers: OutgoingMetadata | None = field(default=None, init=False)
    """What the handler has added to `trailers`."""
    late: bool = field(default=False, init=False)
    """Whether a later event of the same subject was handled before; see EventPattern."""
    has_changed: bool = field(default=False, init=False)
    """Whether a call with side effects was made, in any execution of the handler."""
    _calls: int = field(default=0, init=False)
    """Number of nested calls of this execution of the handler."""
    _expired: bool = field(default=False, init=False)
    _task: asyncio.Task[Any] = field(init=False)
    _cancelling: int = field(init=False)
    _timer: asyncio.TimerHandle = field(init=False)
    _outer: "Token[Context | None]" = field(init=False)

    @property
    def user_id(self) -> str:
        """Id of the calling user; UNAUTHENTICATED, TOKEN_MISSING without a token."""
        return self.require_caller().user_id

    def require_caller(self) -> Caller:
        """Return the caller; UNAUTHENTICATED, TOKEN_MISSING without a token."""
        if self.caller is None:
            raise token_missing()
        return self.caller

    @property
    def metadata(self) -> Metadata:
        """Header fields of the client's request that the gateway is set to pass on.

        `context.metadata.get("accept-language", ["en"])`: the values of a name in lower case, in
        order. Not verified; nested calls get them too.
        """
        return NO_METADATA if self.received_metadata is None else self.received_metadata

    @property
    def headers(self) -> OutgoingMetadata:
        """Header fields for the client: `context.headers.add("x-quota", "7")`.

        Those of a stream are sent with its first message. A stored reply has none.
        """
        if self.reply_headers is None:
            self.reply_headers = OutgoingMetadata()
        return self.reply_headers

    @property
    def trailers(self) -> OutgoingMetadata:
        """Trailer fields for the client, sent after the last message."""
        if self.reply_trailers is None:
            self.reply_trailers = OutgoingMetadata()
        return self.reply_trailers

    def raise_revision(self, revision: int) -> None:
        """Raise `caller_revision` to `revision`, unless it is higher."""
        self.caller_revision = max(self.caller_revision, revision)

    def restart(self, *, late: bool) -> None:
        """Begin an execution of the handler: its nested calls get the same operation ids again."""
        self.late, self._calls = late, 0

    def nested_operation_id(self, method: str, *, changes: bool) -> str:
        """Return the operation id of the next nested call; `changes` if it has side effects.

        An execution that repeats the calls of an earlier one repeats their operation ids.
        """
        self._calls += 1
        self.has_changed |= changes
        return str(uuid5(NAMESPACE_OID, f"{self.name} {self.operation_id} {method} {self._calls}"))

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - time.monotonic()

    def __enter__(self) -> None:
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise deadline_exceeded(Outcome.NO_EFFECT)
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("enter a context in a task")
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


current_context: Final[Callable[[], Context | None]] = _current.get
"""Returns the context of the current call, None outside a handler."""
