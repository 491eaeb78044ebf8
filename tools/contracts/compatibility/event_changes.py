"""Rules on events: name (the routing key), subject, version, and who may hear of them."""

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor

from tools.contracts.compatibility.findings import Audience, Change
from tools.contracts.compatibility.surface import ACCESS, Pair, Surface

__all__ = ["EVENT_RULES", "removed_events", "version_not_raised"]

_EVENT = "postbus.options.v1.event"


def removed_events(old: Surface, new: Surface) -> Iterator[Change]:
    """A routing key under which nothing is published any more."""
    for name in old.events.keys() - new.events.keys():
        yield Change(name=name, what="event removed", before=name, after="gone")


def _subject(pair: Pair[Descriptor]) -> Iterator[Change]:
    """The envelope names another aggregate."""
    before, after = (options["subject"] for options in pair.options(_EVENT))
    if before != after:
        yield Change(
            name=pair.after.full_name, what="event subject changed", before=before, after=after
        )


def _version_lowered(pair: Pair[Descriptor]) -> Iterator[Change]:
    """A version names one meaning."""
    before, after = _versions(pair)
    if after < before:
        yield _of_version(pair, "event version lowered")


def _version_raised(pair: Pair[Descriptor]) -> Iterator[Change]:
    """The meaning has changed, even where the message has not: consumers look at their code."""
    before, after = _versions(pair)
    if after > before:
        yield _of_version(pair, "event version raised", notice=True)


def _access_tightened(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Clients hear of it no longer; services do."""
    before, after = _accesses(pair)
    if after > before:
        yield _for_clients(pair, "event access tightened", ACCESS[before], ACCESS[after])


def _access_loosened(pair: Pair[Descriptor]) -> Iterator[Change]:
    """More people hear of it, which is to be meant."""
    before, after = _accesses(pair)
    if after < before:
        yield Change(
            name=pair.after.full_name,
            what="event access loosened, mind security",
            before=ACCESS[before],
            after=ACCESS[after],
            notice=True,
        )


def _accesses(pair: Pair[Descriptor]) -> tuple[int, int]:
    return pair.old.event_access(pair.before), pair.new.event_access(pair.after)


def _recipient(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Another user hears of it."""
    before, after = (options.get("recipient", "") for options in pair.options(_EVENT))
    if before and after and before != after:
        yield _for_clients(pair, "event recipient changed", before, after)


def _for_clients(pair: Pair[Descriptor], what: str, before: str, after: str) -> Change:
    return Change(
        name=pair.after.full_name,
        what=what,
        before=before,
        after=after,
        breaks=lambda use: use.audience is Audience.WEBSOCKET,
    )


def version_not_raised(pair: Pair[Descriptor]) -> Iterator[Change]:
    """Its message breaks consumers, and the version does not say so."""
    before, after = _versions(pair)
    if after == before:
        yield _of_version(pair, "event version not raised by a breaking change")


def _versions(pair: Pair[Descriptor]) -> tuple[int, int]:
    before, after = (options.get("version") or 1 for options in pair.options(_EVENT))
    return before, after


def _of_version(pair: Pair[Descriptor], what: str, *, notice: bool = False) -> Change:
    before, after = _versions(pair)
    return Change(
        name=pair.after.full_name, what=what, before=str(before), after=str(after), notice=notice
    )


EVENT_RULES = (
    _subject,
    _version_lowered,
    _version_raised,
    _access_tightened,
    _access_loosened,
    _recipient,
)
