"""Rules on events: name (the routing key), subject, version, access and recipient."""

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor

from postbus_runtime.options import Access
from tools.contracts.compatibility.findings import Audience, Change
from tools.contracts.compatibility.surface import Pair, Surface, access_rank

__all__ = ["EVENT_RULES", "removed_events", "version_not_raised"]


def removed_events(old: Surface, new: Surface) -> Iterator[Change]:
    """Yield the routing keys under which no event is published any more."""
    for name in old.events.keys() - new.events.keys():
        yield Change(name=name, kind="event removed", before=name, after="removed")


def _subject(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield a change of the field with the id of the aggregate."""
    before, after = (options.subject for options in pair.event_options())
    if before != after:
        yield Change(
            name=pair.after.full_name, kind="event subject changed", before=before, after=after
        )


def _version_lowered(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield a lower version: a version must not be used again with another meaning."""
    before, after = _versions(pair)
    if after < before:
        yield _of_version(pair, "event version lowered")


def _version_raised(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield a higher version: the meaning has changed, so consumers must be reviewed."""
    before, after = _versions(pair)
    if after > before:
        yield _of_version(pair, "event version raised", notice=True)


def _access_tightened(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield a narrower access: some clients no longer receive the event; services do."""
    before, after = _accesses(pair)
    if access_rank(after) > access_rank(before):
        yield _for_clients(pair, "event access tightened", before, after)


def _access_loosened(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield a wider access, which needs attention: more clients receive the event."""
    before, after = _accesses(pair)
    if access_rank(after) < access_rank(before):
        yield Change(
            name=pair.after.full_name,
            kind="event access loosened, check security",
            before=before,
            after=after,
            notice=True,
        )


def _accesses(pair: Pair[Descriptor]) -> tuple[Access, Access]:
    before, after = pair.event_options()
    return before.access, after.access


def _recipient(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield a change of the field with the receiving user."""
    before, after = (options.recipient for options in pair.event_options())
    if before and after and before != after:
        yield _for_clients(pair, "event recipient changed", before, after)


def _for_clients(pair: Pair[Descriptor], kind: str, before: str, after: str) -> Change:
    return Change(
        name=pair.after.full_name,
        kind=kind,
        before=before,
        after=after,
        breaks=lambda use: use.audience is Audience.WEBSOCKET,
    )


def version_not_raised(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Yield a version that is not raised although the message breaks consumers."""
    before, after = _versions(pair)
    if after == before:
        yield _of_version(pair, "event version not raised by a breaking change")


def _versions(pair: Pair[Descriptor]) -> tuple[int, int]:
    before, after = (options.version for options in pair.event_options())
    return before, after


def _of_version(pair: Pair[Descriptor], kind: str, *, notice: bool = False) -> Change:
    before, after = _versions(pair)
    return Change(
        name=pair.after.full_name, kind=kind, before=str(before), after=str(after), notice=notice
    )


EVENT_RULES = (
    _subject,
    _version_lowered,
    _version_raised,
    _access_tightened,
    _access_loosened,
    _recipient,
)
