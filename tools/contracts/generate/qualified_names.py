"""Candidates for the name of a message, enum or service: alone, or with package and version."""

import re
from collections.abc import Iterable, Set
from typing import Any, Final

from betterproto.casing import pascal_case
from google.protobuf.descriptor import MethodDescriptor

from tools.contracts.generate.unique_names import Named

__all__ = ["first_versions", "package_of", "qualified", "short_name", "with_whole_package"]

_VERSION: Final = re.compile(r"v([0-9]+)(?:p([0-9]+))?(?:(alpha|beta)([0-9]*))?")


def short_name(kind: Any) -> str:
    """Return the name of a message or service without its package and without dots."""
    return str(kind.full_name.removeprefix(f"{package_of(kind)}.").replace(".", ""))


def qualified(kind: Any, first: Set[str]) -> Named:
    """Return the candidates of a message or service: alone, or with package and version."""
    _, *parts = package_of(kind).split(".")
    version = [parts.pop()] if parts and _VERSION.fullmatch(parts[-1]) else []
    fronts = [[], parts[:1], parts, [*parts, *version]]
    if kind.full_name not in first:
        fronts = fronts[-1:]
    found = dict.fromkeys(pascal_case("_".join(front)) + short_name(kind) for front in fronts)
    return Named(owner=kind, candidates=[(each,) for each in found])


def with_whole_package(kind: Any, _: Set[str]) -> Named:
    """Return the candidate of a third-party message or enum, with its whole package."""
    name = "".join(part[:1].upper() + part[1:] for part in kind.full_name.split("."))
    return Named(owner=kind, candidates=[(name,)])


def package_of(kind: Any) -> str:
    """Return the package of a message, service or method."""
    owner = kind.containing_service if isinstance(kind, MethodDescriptor) else kind
    return str(owner.file.package)


def _line(kind: Any) -> tuple[tuple[str, str], tuple[int, int, int, int]]:
    """Return the name without the version, as package and rest, and the sort key of the version."""
    package = package_of(kind)
    rest = kind.full_name.removeprefix(f"{package}.")
    *parts, last = package.split(".")
    found = _VERSION.fullmatch(last)
    if found is None:
        return (package, rest), (0, 0, 0, 0)
    major, point, stage, number = found.groups(default="0")
    stages = {"alpha": 1, "beta": 2, "0": 3}
    version = (int(major), int(point), stages[stage], int(number or 0))
    return (".".join(parts), rest), version


def first_versions(kinds: Iterable[Any]) -> set[str]:
    """Return the full names of elements that no earlier version of their package has."""
    first: dict[tuple[str, str], tuple[tuple[int, int, int, int], str]] = {}
    for kind in kinds:
        line, version = _line(kind)
        first[line] = min(first.get(line, (version, kind.full_name)), (version, kind.full_name))
    return {name for _, name in first.values()}
