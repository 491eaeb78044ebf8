"""Rules on methods, by routing key: types, promises and options."""

from collections.abc import Iterator
from typing import Final

from google.protobuf.descriptor import MethodDescriptor

from postbus_runtime.options import Idempotency
from tools.contracts.compatibility.findings import Audience, Change
from tools.contracts.compatibility.kinds import Kind
from tools.contracts.compatibility.option_changes import method_options
from tools.contracts.compatibility.surface import Pair, Surface

__all__ = ["METHOD_RULES", "removed_methods"]

_PROMISES: Final = (Idempotency.UNKNOWN, Idempotency.IDEMPOTENT, Idempotency.NO_SIDE_EFFECTS)
"""From the weakest to the strongest."""


def removed_methods(old: Surface, new: Surface) -> Iterator[Change]:
    """Yield the routing keys of removed methods, services and packages."""
    for name in old.methods.keys() - new.methods.keys():
        yield Change(name=name, kind=Kind.METHOD_REMOVED, before=name, after="removed")


def _streaming(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a change between one message and a stream."""
    before, after = (_cardinality(method) for method in (pair.before, pair.after))
    if before != after:
        yield Change(
            name=pair.after.full_name, kind=Kind.STREAMING_CHANGED, before=before, after=after
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
    for part, kind in (
        ("input_type", Kind.REQUEST_TYPE_CHANGED),
        ("output_type", Kind.RESPONSE_TYPE_CHANGED),
    ):
        before, after = getattr(pair.before, part), getattr(pair.after, part)
        if before.full_name != after.full_name:
            yield Change(
                name=pair.after.full_name,
                kind=kind,
                before=before.full_name,
                after=after.full_name,
                breaks=lambda use: use.audience is Audience.WEBSOCKET,
            )


def _idempotency(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a weaker promise: callers repeat safe and idempotent methods."""
    before, after = (options.idempotency for options in pair.method_options())
    if _PROMISES.index(after) < _PROMISES.index(before):
        yield Change(
            name=pair.after.full_name, kind=Kind.IDEMPOTENCY_WEAKENED, before=before, after=after
        )


METHOD_RULES = (_streaming, _types, _idempotency, method_options)
