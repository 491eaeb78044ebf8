"""Rules on events: name (the routing key) and version; `option_changes` compares their options."""

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor

from tools.contracts.compatibility.findings import Change
from tools.contracts.compatibility.kinds import Kind
from tools.contracts.compatibility.surface import Pair, Surface

__all__ = ["removed_events", "version_not_raised"]


def removed_events(old: Surface, new: Surface) -> Iterator[Change]:
    """Yield the routing keys under which no event is published any more."""
    for name in old.events.keys() - new.events.keys():
        yield Change(name=name, kind=Kind.EVENT_REMOVED, before=name, after="removed")


def version_not_raised(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield a version that is not raised although the message breaks consumers."""
    before, after = (options.version for options in pair.event_options())
    if after == before:
        yield Change(
            name=pair.after.full_name,
            kind=Kind.EVENT_VERSION_NOT_RAISED,
            before=str(before),
            after=str(after),
        )
