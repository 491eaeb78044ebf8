"""A unit of work: what one call or event changes, the events it causes and its reply, all or none.

Each operation is remembered with its reply (the inbox), in the transaction of its changes: when it
comes again, there is no second effect, and the caller gets the first answer. The events wait in the
same database (the outbox) until the relay has handed them to the broker.
"""

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Protocol

from postbus.bus.v1 import Event
from shared.errors import Code, Outcome, ServiceError

__all__ = [
    "KEEP_SECONDS",
    "AlreadyDone",
    "Handle",
    "Operation",
    "Perform",
    "Publish",
    "Store",
    "Transaction",
    "UnitOfWork",
    "answered_before",
    "current_unit_of_work",
    "outside_work",
    "perform_separately",
    "stored_reply",
    "without_store",
]

KEEP_SECONDS: Final = 24 * 60 * 60
"""How long an operation is remembered."""

Publish = Callable[[Event], Awaitable[None]]
"""Hands an event to the broker; raises ServiceError unless the broker has it."""

Handle = Callable[[], Awaitable[bytes]]
"""Runs the handler of an operation and returns its encoded response."""


@dataclass(slots=True, kw_only=True)
class Operation:
    """What must happen once: a call of a method by a caller, or an event at a consumer."""

    key: str
    """Its name, 64 hex digits."""
    fingerprint: bytes = b""
    """SHA-256 of what was asked: another question under the same name is refused."""
    secret: bool = False
    """The reply must not be stored."""
    begin_immediately: bool = False
    """Changes something in any case: the work begins before the handler does."""
    subject: str = ""
    version: int = 0
    """Of an event: names consumer and aggregate, and the aggregate's version; 0 for none."""
    handles_late: bool = False
    """Of an event: it is handled even if a later one of its subject was handled before."""
    late: bool = False
    """Set by the store, at the beginning of the work: such a later event was handled before."""
    replayed: bool = False
    """Set by the store: it was done before, and its reply is the one that was then given."""

    @staticmethod
    def key_of(*parts: str) -> str:
        """Return a key for what the parts name together."""
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class AlreadyDone(BaseException):  # no error, and not for handlers to catch
    """Ends a handler whose operation has been done; the answer is `reply`."""

    def __init__(self, reply: bytes = b"") -> None:
        super().__init__()
        self.reply = reply


Perform = Callable[[Operation, Handle], Awaitable[bytes]]
"""See Store.perform."""


class UnitOfWork:
    """The work of one operation: here without a database."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def roll_back(self) -> None:
        """Undo what is done, and hold nothing: the handler is about to fail."""

    def answered_before(self) -> None:
        """See the function `answered_before`."""


@contextmanager
def outside_work() -> Iterator[None]:
    """What is done inside is not part of the current work: it stays, and holds nobody up."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


class Transaction(UnitOfWork, ABC):
    """The work of one operation in a database: begins at first use, for one task at a time."""

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self._operation = operation
        self._lock = asyncio.Lock()
        self._user: asyncio.Task[object] | None = None
        self._ended: BaseException | None = None

    def answered_before(self) -> None:
        """See the function `answered_before`."""
        self._operation.replayed = True

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Begin, and keep other tasks of the handler from the connection meanwhile."""
        if self._user is asyncio.current_task():
            yield
            return
        async with self._lock:
            self._user = asyncio.current_task()
            try:
                await self._require()
                yield
            finally:
                self._user = None

    async def _require(self) -> None:
        """Begin unless it has begun; once that has failed there is no going on."""
        if self._ended is None:
            try:
                await self._begin()
            except BaseException as error:
                self._ended = error
                raise
        else:
            raise self._ended

    async def run(self, handler: Handle, *, begin_immediately: bool) -> bytes:
        """Run `handler` as part of this work, and commit; return its reply, or the first one."""
        token = _current.set(self)
        try:
            if begin_immediately:
                async with self.turn():
                    pass
            reply = await handler()
            if self.events:
                async with self.turn():
                    pass
            if self._ended is not None:
                raise self._ended
            await self._commit(reply)
        except asyncio.CancelledError:
            raise
        except BaseException:
            if isinstance(self._ended, AlreadyDone):  # whatever became of it on its way here
                return self._ended.reply
            raise
        else:
            return reply
        finally:
            _current.reset(token)

    @abstractmethod
    async def _begin(self) -> None:
        """Begin unless it has begun; AlreadyDone if the operation has been done."""

    @abstractmethod
    async def _commit(self, reply: bytes) -> None:
        """Store the reply and the events, and commit all of it, if it has begun."""


class Store(Protocol):
    """A database that keeps works whole. Safe for concurrent use."""

    async def perform(self, operation: Operation, handler: Handle) -> bytes:
        """Run `handler` in a unit of work and return its reply; the first one if it is done before.

        What it raises undoes everything. It may be run again before the commit, where the database
        asks for it.
        """

    async def forward(self, publish: Publish) -> int:
        """Hand some events of the outbox to the broker, oldest first; return how many."""

    async def purge(self) -> None:
        """Forget old operations."""

    @property
    def committed(self) -> asyncio.Event:
        """Set after each commit that put something into the outbox."""


async def perform_separately(store: Store, operation: Operation, handler: Handle) -> None:
    """Perform an operation that stays although the current work is about to fail.

    The work is given up before: those that kept their connections would wait for each other's.
    """
    if work := _current.get():
        await work.roll_back()
    with outside_work():
        await store.perform(operation, handler)


def without_store(publish: Publish) -> Perform:
    """Return what performs operations without a database: nothing is remembered.

    Events go to the broker once the handler has succeeded, and before its reply.
    """

    async def perform(_operation: Operation, handler: Handle) -> bytes:
        work = UnitOfWork()
        token = _current.set(work)
        try:
            reply = await handler()
        finally:
            _current.reset(token)
        for event in work.events:
            await publish(event)
        return reply

    return perform


_current: ContextVar[UnitOfWork | None] = ContextVar("postbus_work", default=None)


def current_unit_of_work() -> UnitOfWork | None:
    """Return the work that this task is part of, if it is part of one."""
    return _current.get()


def answered_before() -> None:
    """Mark what the current handler returns as the answer that its operation got before.

    For a handler that keeps its answers itself; the inbox does it for all others.
    """
    if work := _current.get():
        work.answered_before()


def stored_reply(operation: Operation, fingerprint: bytes, reply: bytes | None) -> bytes:
    """Return the stored reply of an operation that has been done, or raise why there is none."""
    if fingerprint != operation.fingerprint:
        raise ServiceError(
            Code.INVALID_ARGUMENT,
            "OPERATION_ID_REUSED",
            "The idempotency key belongs to another request: make a new one.",
        )
    if reply is None:
        raise ServiceError(
            Code.ALREADY_EXISTS,
            "ALREADY_DONE",
            "This was done before, and its answer is not kept.",
            outcome=Outcome.UNKNOWN,
        )
    return reply
