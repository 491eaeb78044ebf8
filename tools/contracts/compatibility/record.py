"""The changes of a comparison with the uses that they break, each change once."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

from tools.contracts.compatibility.findings import Change, Direction, Finding, Use, every_use
from tools.contracts.compatibility.kinds import Kind
from tools.contracts.compatibility.surface import Surface

__all__ = ["Record"]


class Record:
    """Collects changes; the same change of several uses becomes one finding."""

    def __init__(self, old: Surface, new: Surface) -> None:
        self._old, self._new = old, new
        self._broken: dict[Change, set[Use]] = defaultdict(set)

    def add(self, changes: Iterable[Change], uses: set[Use]) -> None:
        """Add the changes that break any of the uses, which are all uses of the changed part."""
        for change in changes:
            broken = {use for use in uses if change.breaks(use)}
            if broken:
                self._broken[_judged(change, uses)] |= broken

    def add_each(self, changes: Iterable[Change], uses_of: Callable[[str], set[Use]]) -> None:
        """Add each change with the uses of its name."""
        for change in changes:
            self.add([change], uses_of(change.name))

    def broken_events(self) -> dict[str, set[Use]]:
        """Return the events with a change so far that is no notice, with the broken uses."""
        broken: dict[str, set[Use]] = defaultdict(set)
        for change, uses in self._broken.items():
            for use in uses if not change.notice else ():
                broken[use.event].add(use)
        return broken

    def findings(self) -> list[Finding]:
        """Return all changes, each once."""
        return [self._finding(change, uses) for change, uses in self._broken.items()]

    def _finding(self, change: Change, uses: set[Use]) -> Finding:
        parts = [change.name, change.kind.text, *([change.detail] if change.detail else [])]
        return Finding(
            where=self._new.position(change.name) or self._old.position(change.name),
            text=f"{': '.join(parts)}: {change.before} -> {change.after}",
            kind=change.kind,
            audiences=frozenset(use.audience for use in uses),
            notice=change.notice,
        )


def _judged(change: Change, uses: set[Use]) -> Change:
    """Return a change without its selection of uses, so that equal changes are one."""
    written = any(use.direction is Direction.REQUEST for use in uses)
    if change.relaxes and written:
        change = replace(change, kind=Kind.LIMIT_RELAXED, notice=True)
    return replace(change, breaks=every_use)
