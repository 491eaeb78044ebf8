"""Pause a consumer of events while a dependency of its handler is unavailable."""

import asyncio
import logging
import random
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from shared.bus.amqp.broker_errors import BROKER_ERRORS, broker_errors
from shared.bus.amqp.message_channel import MessageChannel
from shared.bus.message_bus import EventHandler, Failure
from shared.limited_log import LimitedLog

__all__ = ["HOLD_SECONDS", "RETURNED", "Pause"]

_FIRST_DELAY: Final = 0.2
"""Seconds before the first probe; the delay doubles with each failed probe."""
_LAST_DELAY: Final = 1.0
"""Longest delay between two probes, in seconds."""
_TRIAL_SECONDS: Final = 3.0
"""Time of failed probes after which one more delivery is taken, and again after the same time."""
_STRIKES: Final = 5
"""Failures of a delivery, each after a success of another one, that prove its own fault."""
HOLD_SECONDS: Final = 1200.0
"""Longest time without acknowledgement. RabbitMQ closes the channel after 30 minutes by default
(https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout)."""

RETURNED: Final = Failure(
    reason="RETURNED", message="The event is returned to its queue.", retry=True
)
"""The result of a delivery that was held until the stop of its consumer, or for too long."""


@dataclass(slots=True, eq=False)
class _Held:
    """A delivery that is held."""

    since: float
    """Time of the event loop, in seconds."""
    successes: int
    """Successes of other deliveries until its last failure."""
    strikes: int = 0
    turn: asyncio.Future[bool] | None = None
    """The wait for the next attempt; True permits it, False ends the holding."""


class Pause:
    """Suspends the consumer of a queue while a dependency of the handler is unavailable.

    Failed deliveries are held unacknowledged: a requeue would count against the delivery limit of
    the queue. Probes run their handler again, one delivery after another, until one succeeds. Then
    all held deliveries are handled, and the queue is consumed again. A delivery that fails
    repeatedly while others succeed has a fault of its own, and its failure is final. If no held
    delivery succeeds, the queue may hold one that does: from time to time one more is taken.

    Each queue pauses by itself, because another handler may need other dependencies. A pause
    belongs to one channel, which delivers `prefetch` messages at most.
    """

    def __init__(
        self,
        queue: str,
        channel: MessageChannel,
        handler: EventHandler,
        *,
        prefetch: int,
        log: LimitedLog,
        hold_seconds: float,
    ) -> None:
        self.suspended = False
        """Whether the queue is not consumed, but for trials."""
        self.tag = queue
        """The tag of the consumer."""
        self._queue = queue
        self._channel = channel
        self._handler = handler
        self._prefetch = self._consumed = prefetch
        self._starts = 0
        self._log = log
        self._hold_seconds = hold_seconds
        self._held: list[_Held] = []
        self._available = True
        """Whether a success followed the last failure of a new delivery."""
        self._successes = 0
        self._trial_at = 0.0
        self._ended = False
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._probing: asyncio.Task[None] | None = None

    async def outlast(self, body: bytes, failure: Failure) -> Failure | None:
        """Hold a new delivery that has failed, and handle it again, until the failure is another.

        Returns the last failure, None for success, or RETURNED.
        """
        held = _Held(self._loop.time(), self._successes)
        self._held.append(held)
        self._available = False
        if not self.suspended:
            self._wake.set()
        if self._probing is None or self._probing.done():
            self._probing = self._loop.create_task(self._probe(failure.reason))
        try:
            return await self._handle_again(held, body)
        finally:
            self._held.remove(held)
            if not self._held:
                self._wake.set()

    async def _handle_again(self, held: _Held, body: bytes) -> Failure | None:
        while await self._turn(held):
            failure = await self._handler(body)
            if failure is None or not failure.dependency_down:
                return failure
            if self._successes > held.successes:
                held.successes = self._successes
                held.strikes += 1
                if held.strikes == _STRIKES:
                    return failure
        return RETURNED

    async def _turn(self, held: _Held) -> bool:
        if self._ended or self._channel.closed:
            return False
        held.turn = self._loop.create_future()
        try:
            return await held.turn
        finally:
            held.turn = None

    def succeeded(self) -> None:
        """Take note that the handler has succeeded: the dependency is available."""
        if self._held or self.suspended:
            self._successes += 1
            self._available = True
            if self.suspended:
                self._wake.set()

    async def stop(self) -> None:
        """Return the held deliveries, and change the consumer no more."""
        self.end()
        if self._probing is not None:
            await asyncio.wait([self._probing])

    def end(self) -> None:
        """Let go of the held deliveries."""
        self._ended = True
        self._wake.set()

    async def _probe(self, reason: str) -> None:
        """Probe until nothing is held and the queue is consumed, or until the end."""
        await self._suspend(reason)
        delay = _FIRST_DELAY
        await self._sleep(delay, wakes=False)  # handlers that began before the failure may succeed
        while self._held or self._consumed < self._prefetch:
            if self._ended or self._channel.closed:
                break
            self._return_expired()
            if self._available or not self._held:
                if self.suspended:
                    await self._resume(reason)
                    delay = _FIRST_DELAY
                elif not self._held:
                    await self._consume(self._prefetch)
                self._give_turns(permit=True)
            else:
                await self._suspend(reason)
                await self._take_another()
                self._give_turns(permit=True, number=1)
            await self._sleep(delay)
            delay = min(delay * 2, _LAST_DELAY)
        self._give_turns(permit=False)

    async def _sleep(self, seconds: float, *, wakes: bool = True) -> None:
        seconds *= random.uniform(0.5, 1)  # noqa: S311  # jitter, not a secret
        if not wakes:
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    def _waiting(self) -> list[tuple[_Held, asyncio.Future[bool]]]:
        """Return the deliveries that wait for their turn, the longest first."""
        return [(held, held.turn) for held in self._held if held.turn and not held.turn.done()]

    def _give_turns(self, *, permit: bool, number: int | None = None) -> None:
        """Let the deliveries that wait longest have their turn: `number`, or all."""
        for held, turn in self._waiting()[:number]:
            turn.set_result(permit)
            self._held.remove(held)
            self._held.append(held)

    def _return_expired(self) -> None:
        oldest = self._loop.time() - self._hold_seconds
        for held, turn in self._waiting():
            if held.since <= oldest:
                turn.set_result(False)

    async def _suspend(self, reason: str) -> None:
        if not self.suspended:
            self._trial_at = self._loop.time() + _TRIAL_SECONDS
            self._log.write(logging.WARNING, "consumer.paused", queue=self._queue, reason=reason)
            self.suspended = True
            await self._consume(0)

    async def _resume(self, reason: str) -> None:
        self.suspended = False
        self._log.write(logging.INFO, "consumer.resumed", queue=self._queue, reason=reason)
        await self._consume(max(self._prefetch - len(self._held), 1))

    async def _take_another(self) -> None:
        """Take one more delivery if it is time for that."""
        now = self._loop.time()
        if now >= self._trial_at and len(self._held) < self._prefetch:
            self._trial_at = now + _TRIAL_SECONDS
            await self._consume(1)

    async def _consume(self, prefetch: int) -> None:
        """Replace the consumer by one with another prefetch, or by none for 0.

        A new tag each time: RabbitMQ 3.10 closes the connection if a consumer of a quorum queue
        with unacknowledged deliveries starts again with its tag. A loss of the channel needs
        nothing: its session is lost too.
        """
        self._starts += 1
        old, self.tag = self.tag, f"{self._queue}.{self._starts}"
        self._consumed = prefetch
        with suppress(*BROKER_ERRORS), broker_errors():
            await self._channel.replace_consumer(old, self.tag, self._queue, prefetch)
