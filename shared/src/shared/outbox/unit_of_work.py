"""Units of work: the changes, events and reply of one operation, committed together or not at all.

The transaction of the changes also stores the operation with its reply (the inbox) and the events
(the outbox). If the operation is repeated, it has no second effect, and the caller gets the stored
reply. The events stay in the outbox until the relay has published them.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Final, Protocol

from postbus.bus.v1 import Event
from shared.errors import Outcome, ServiceError
from shared.outbox.inbox import AlreadyDone, Operation, OperationResult
from shared.outbox.outbox import Publish

__all__ = [
    "Execution",
    "Perform",
    "Store",
    "Transaction",
    "UnitOfWork",
    "current_unit_of_work",
    "mark_replayed",
    "outside_unit_of_work",
    "perform_separately",
    "set_reply_owner",
    "without_store",
]

Execution = Callable[[], Awaitable[bytes]]
"""Runs the handler of an operation and returns its encoded response."""

Perform = Callable[[Operation, Execution], Awaitable[OperationResult]]
"""See Store.perform."""


class UnitOfWork:
    """The unit of work of one operation; this base class has no database."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.late = False
        """Whether a newer event of the same subject was handled before."""
        self.replayed = False
        """Whether the handler returns the reply of an earlier execution; see `mark_replayed`."""
        self.reply_owner = ""
        """Id of the user whose data the reply contains; see `set_reply_owner`."""

    async def roll_back(self) -> None:
        """Undo the changes and release the connection, because the handler is about to fail."""


_current: ContextVar[UnitOfWork | None] = ContextVar("postbus_unit_of_work", default=None)


current_unit_of_work: Final[Callable[[], UnitOfWork | None]] = _current.get
"""Returns the unit of work that the current task belongs to, or None."""


@contextmanager
def outside_unit_of_work() -> Iterator[None]:
    """Run the block outside the current unit of work: a rollback does not undo its changes."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


def mark_replayed() -> None:
    """Mark the result of the current handler as the reply of an earlier execution.

    Only for a handler that stores its replies itself; the inbox marks all other replies.
    """
    if unit := _current.get():
        unit.replayed = True


def set_reply_owner(user_id: str) -> None:
    """Set the owner of the data in the reply of the current handler, if not its caller."""
    if unit := _current.get():
        unit.reply_owner = user_id


class Transaction(UnitOfWork, ABC):
    """A unit of work in a database: its transaction begins at the first use, and one task uses it
    at a time."""

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.reply_owner = operation.owner
        self._operation = operation
        self._lock = asyncio.Lock()
        self._owner: asyncio.Task[object] | None = None
        self._ended: BaseException | None = None
        """The error of every further use; None while the transaction can be used."""

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Begin if necessary, and give the calling task exclusive use of the transaction."""
        if self._owner is asyncio.current_task():
            yield
            return
        async with self._lock:
            self._owner = asyncio.current_task()
            try:
                await self._ensure_begun()
                yield
            finally:
                self._owner = None

    async def _ensure_begun(self) -> None:
        """Begin the transaction once. If the first attempt failed, raise the same error again."""
        if self._ended is None:
            try:
                await self._begin()
            except BaseException as error:
                self._ended = error
                raise
        else:
            raise self._ended

    async def run(self, execute: Execution) -> OperationResult:
        """Run `execute` in this transaction and commit; return its reply or the stored one."""
        token = _current.set(self)
        try:
            if self._operation.begin_immediately:
                async with self.exclusive():
                    pass
            reply = await execute()
            if self.events:
                async with self.exclusive():
                    pass
            if self._ended is not None:
                raise self._ended
            await self._commit(reply)
        except asyncio.CancelledError:
            raise
        except BaseException:
            if isinstance(self._ended, AlreadyDone):  # the handler may have replaced the exception
                return OperationResult(self._ended.reply, replayed=True)
            raise
        else:
            return OperationResult(reply, self.replayed)
        finally:
            _current.reset(token)

    @abstractmethod
    async def _begin(self) -> None:
        """Begin unless the transaction has begun; AlreadyDone if the inbox has the operation."""

    @abstractmethod
    async def _commit(self, reply: bytes) -> None:
        """Store reply and events, and commit; do nothing if the transaction has not begun."""


class Store(Protocol):
    """A database with inbox and outbox. Safe for concurrent use."""

    async def perform(self, operation: Operation, execute: Execution) -> OperationResult:
        """Run `execute` in a unit of work and return its reply, or the stored reply.

        An exception of `execute` rolls everything back. `execute` can run several times before the
        commit: MongoDB aborts transactions that conflict.
        """

    async def forward(self, publish: Publish) -> int:
        """Publish some events of the outbox, oldest first; return the number of events."""

    async def purge(self) -> None:
        """Delete the operations that are older than KEEP_SECONDS."""

    async def erase_replies(self, owner: str) -> bool:
        """Erase a batch of the stored replies of a deleted user; return whether more may remain.

        A repeated operation still has no second effect: it fails with ALREADY_EXISTS, ALREADY_DONE.
        Empty replies, which contain no data, are kept.
        """

    @property
    def committed(self) -> asyncio.Event:
        """Set after each commit that stored events."""


async def perform_separately(store: Store, operation: Operation, execute: Execution) -> None:
    """Perform an operation in a transaction of its own, before the current handler fails.

    The current unit of work is rolled back first: if it kept its connection, concurrent callers
    could use up the pool and deadlock.
    """
    if unit := _current.get():
        await unit.roll_back()
    with outside_unit_of_work():
        await store.perform(operation, execute)


def without_store(publish: Callable[[Event], Awaitable[None]]) -> Perform:
    """Return a `Perform` for services without a database. Operations are not deduplicated.

    Events are published after the handler has succeeded, and before its reply. If that fails, the
    outcome is UNKNOWN: nothing undoes what the handler has done.
    """

    async def perform(_operation: Operation, execute: Execution) -> OperationResult:
        unit = UnitOfWork()
        token = _current.set(unit)
        try:
            reply = await execute()
        finally:
            _current.reset(token)
        try:
            for event in unit.events:
                await publish(event)
        except ServiceError as error:
            error.outcome = Outcome.try_value(Outcome.UNKNOWN)
            raise
        return OperationResult(reply, unit.replayed)

    return perform
