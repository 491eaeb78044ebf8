"""Choose the shortest candidates that are unique."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from postbus_runtime.contract import ContractError

__all__ = ["Named", "choose"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A descriptor with its candidates, the shortest first; each is a set of names."""

    owner: Any
    candidates: Sequence[tuple[str, ...]]


def choose(
    output: str, fold: Callable[[str], str], named: Sequence[Named], reserved: Iterable[str] = ()
) -> Mapping[str, tuple[str, ...]]:
    """Return the names of each owner by its full name, no two of them equal when folded."""
    levels = [0] * len(named)
    while clashes := _clashes(fold, named, levels, reserved):
        longer = [i for i in clashes if levels[i] + 1 < len(named[i].candidates)]
        if not longer:
            index, other = clashes.popitem()
            name = named[index].candidates[levels[index]][0]
            raise ContractError(
                named[index].owner, f"its {output} {name} is also that of {other}: rename one"
            )
        for index in longer:
            levels[index] += 1
    return {
        each.owner.full_name: each.candidates[level]
        for each, level in zip(named, levels, strict=True)
    }


def _clashes(
    fold: Callable[[str], str],
    named: Sequence[Named],
    levels: Sequence[int],
    reserved: Iterable[str],
) -> dict[int, str]:
    """Return the indexes of those whose names others have too, with the name of one of them."""
    owners: dict[str, list[int]] = defaultdict(list)
    for index, each in enumerate(named):
        for name in set(map(fold, each.candidates[levels[index]])):
            owners[name.lower()].append(index)
    ours = {fold(name).lower() for name in reserved}
    found: dict[int, str] = {}
    for name, indexes in owners.items():
        if name in ours:
            found |= dict.fromkeys(indexes, "every document")
        elif len(indexes) > 1:
            first, *rest = indexes
            found[first] = named[rest[0]].owner.full_name
            found |= dict.fromkeys(rest, named[first].owner.full_name)
    return found
