"""The services that all REST endpoints and WebSockets of a gateway share."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from gateway.call_metadata import RequestMetadata
from gateway.caller_revisions import CallerRevisions
from gateway.cors import Cors
from gateway.event_subscriptions import EventSubscriptions
from gateway.large_inputs import LargeInputs
from gateway.metrics import Metrics
from gateway.rate_limits import RateLimits, RateLimitSettings
from gateway.rate_storage import BoundedStorage
from gateway.signing_keys import GET_SIGNING_KEYS, signing_keys
from gateway.socket_limits import FrameBudgets, SocketLimits, SocketQuotas
from gateway.unfinished_input import UnfinishedInput
from shared.access_tokens import TokenVerifier
from shared.bus import Call, MessageBus
from shared.bus.reply import CallResult
from shared.limited_log import LimitedLog
from shared.runtime.session_verifier import SessionVerifier
from shared.security_log import SecurityLog

__all__ = ["Services"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The services of one gateway."""

    bus: MessageBus
    own_methods: Mapping[str, Callable[[Call], Awaitable[CallResult]]]
    """Methods that the gateway serves itself, by name."""
    verifier: SessionVerifier
    subscriptions: EventSubscriptions
    revisions: CallerRevisions
    rates: RateLimits
    large_inputs: LargeInputs
    metrics: Metrics
    security_log: SecurityLog
    log: LimitedLog
    """For faults of workers that any request can repeat."""
    cors: Cors
    metadata: RequestMetadata
    socket_limits: SocketLimits
    socket_quotas: SocketQuotas
    frame_budgets: FrameBudgets
    unfinished: UnfinishedInput
    max_body_bytes: int
    """Largest request body, and largest WebSocket message of an authenticated client."""

    @classmethod
    def create(
        cls,
        bus: MessageBus,
        verifier: TokenVerifier,
        *,
        max_body_bytes: int,
        rates: RateLimits | None = None,
        socket_limits: SocketLimits = SocketLimits(),  # noqa: B008  # frozen
        unfinished: UnfinishedInput | None = None,
        allowed_origins: tuple[str, ...] = (),
        metadata_headers: tuple[str, ...] = (),
    ) -> Self:
        """Return the services of a gateway that calls over `bus`.

        Without `rates`, only methods with a `rate_limit` in the contract have a limit.
        """
        return cls(
            bus=bus,
            own_methods={GET_SIGNING_KEYS: signing_keys(verifier.key_set)},
            verifier=SessionVerifier(bus, verifier),
            subscriptions=EventSubscriptions(bus),
            revisions=CallerRevisions(bus),
            rates=rates or RateLimits(RateLimitSettings(), BoundedStorage()),
            large_inputs=LargeInputs(),
            metrics=Metrics(bus, bus.security_log.counts),
            security_log=bus.security_log,
            log=LimitedLog(),
            cors=Cors(allowed_origins),
            metadata=RequestMetadata(metadata_headers),
            socket_limits=socket_limits,
            socket_quotas=SocketQuotas(socket_limits),
            frame_budgets=FrameBudgets(socket_limits),
            unfinished=unfinished or UnfinishedInput(),
            max_body_bytes=max_body_bytes,
        )

    def subscribe(self) -> "asyncio.Future[Any]":
        """Subscribe to the events that the services consume; done once the broker has confirmed."""
        return asyncio.gather(self.subscriptions.run(), self.verifier.run(), self.revisions.run())
