"""Rules on methods, by routing key: types, access, promises and timeouts."""

from collections.abc import Iterator
from typing import Final

from google.protobuf.descriptor import MethodDescriptor

from postbus_runtime.options import Access, Idempotency
from tools.contracts.compatibility.findings import Audience, Breaks, Change, every_use
from tools.contracts.compatibility.surface import Pair, Surface, access_rank

__all__ = ["METHOD_RULES", "removed_methods"]

_PROMISES: Final = (Idempotency.UNKNOWN, Idempotency.IDEMPOTENT, Idempotency.NO_SIDE_EFFECTS)
"""From the weakest to the strongest."""


def removed_methods(old: Surface, new: Surface) -> Iterator[Change]:
    """Yield the routing keys of removed methods, services and packages."""
    for name in old.methods.keys() - new.methods.keys():
        yield Change(name=name, kind="method removed", before=name, after="removed")


def _streaming(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a change between one message and a stream."""
    before, after = (_cardinality(method) for method in (pair.before, pair.after))
    if before != after:
        yield Change(
            name=pair.after.full_name, kind="streaming changed", before=before, after=after
        )


def _cardinality(method: MethodDescriptor) -> str:
    kinds = {
        (False, False): "unary",
        (True, False): "client streaming",
        (False, True): "server streaming",
        (True, True): "bidirectional streaming",
    }
    return kinds[method.client_streaming, method.server_streaming]


def _types(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield renamed message types: the JSON of an Any has the name. Fields are compared anyway."""
    for kind in ("input_type", "output_type"):
        before, after = getattr(pair.before, kind), getattr(pair.after, kind)
        if before.full_name != after.full_name:
            yield Change(
                name=pair.after.full_name,
                kind="request type changed" if kind == "input_type" else "response type changed",
                before=before.full_name,
                after=after.full_name,
                breaks=lambda use: use.audience is Audience.WEBSOCKET,
            )


def _access_tightened(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a narrower access: it excludes clients; workers may call internal methods."""
    before, after = _accesses(pair)
    if access_rank(after) > access_rank(before):
        yield _of_access(pair, "access tightened", lambda use: use.audience is not Audience.WORKER)


def _access_loosened(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a wider access, which needs attention: more clients may call the method."""
    before, after = _accesses(pair)
    if access_rank(after) < access_rank(before):
        yield _of_access(pair, "access loosened, check security", every_use, notice=True)


def _token_required(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a required access token: workers that call without a user have none."""
    before, after = _accesses(pair)
    if after is Access.USER and before is not Access.USER:
        yield _of_access(
            pair, "access token now required", lambda use: use.audience is Audience.WORKER
        )


def _callers(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield services that may not call the method any more; a notice if there was no list."""
    before, after = (options.callers for options in pair.method_options())
    if after and (not before or before - after):
        yield Change(
            name=pair.after.full_name,
            kind="callers restricted",
            before=_names(before),
            after=_names(after),
            breaks=lambda use: use.audience is Audience.WORKER,
            notice=not before,
        )


def _names(callers: frozenset[str]) -> str:
    return ", ".join(sorted(callers)) or "all services"


def _accesses(pair: Pair[MethodDescriptor]) -> tuple[Access | None, Access | None]:
    before, after = pair.method_options()
    return before.access, after.access


def _of_access(
    pair: Pair[MethodDescriptor], kind: str, breaks: Breaks, *, notice: bool = False
) -> Change:
    before, after = _accesses(pair)
    return Change(
        name=pair.after.full_name,
        kind=kind,
        before=before or "UNSPECIFIED",
        after=after or "UNSPECIFIED",
        breaks=breaks,
        notice=notice,
    )


def _idempotency(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a weaker promise: callers repeat safe and idempotent methods."""
    before, after = (options.idempotency for options in pair.method_options())
    if _PROMISES.index(after) < _PROMISES.index(before):
        yield Change(
            name=pair.after.full_name, kind="idempotency weakened", before=before, after=after
        )


def _timeout(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a lower default timeout, for callers that set no budget."""
    before, after = (options.timeout_ms for options in pair.method_options())
    if after < before:
        yield Change(
            name=pair.after.full_name,
            kind="default timeout lowered",
            before=f"{before} ms",
            after=f"{after} ms",
            notice=True,
        )


def _conditions(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a lost version: the ETag has none any more, or If-Match is refused."""
    before, after = pair.method_options()
    for option, lost, kept in (
        ("version", before.version, after.version),
        ("expected_version", before.expected_version, after.expected_version),
    ):
        if lost and not kept:
            yield Change(
                name=pair.after.full_name,
                kind=f"{option} lost",
                before=lost,
                after="none",
                breaks=lambda use: use.audience is Audience.REST,
            )


METHOD_RULES = (
    _streaming,
    _types,
    _access_tightened,
    _access_loosened,
    _token_required,
    _callers,
    _idempotency,
    _timeout,
    _conditions,
)
