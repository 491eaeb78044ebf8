"""Find the endpoint of a request by its verb and path."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Generic, TypeVar

from gateway.targets import path_value

__all__ = ["ContractRoutes", "precedence"]

E = TypeVar("E")
_PARAMETER: Final = re.compile(r"\{([^}]+)\}")
_SERVES_HEAD: Final = "GET"
"""The endpoint of GET serves HEAD too (RFC 9110, section 9.3.2)."""


class ContractRoutes(Generic[E]):
    """The endpoint of each verb and path template, such as `POST /v1/posts/{id}:publish`.

    A parameter is one segment, which may contain an escaped slash (RFC 3986, section 2.2). If two
    templates of a verb match, `precedence` decides. A path that matches a template with a custom
    verb (`:publish`) matches no template without one, for any HTTP verb: a parameter that ends with
    the text of a custom verb needs an escaped colon.
    """

    def __init__(self, endpoints: Mapping[tuple[str, str], E]) -> None:
        self._custom = _by_verb(endpoints, custom=True)
        self._plain = _by_verb(endpoints, custom=False)
        self._is_custom = _matcher(sorted({path for _, path in endpoints if _split(path)[1]}))

    def find(self, verb: str, path: bytes) -> tuple[E, dict[str, str]] | None:
        """Return the endpoint of a normalized path, with the path's parameters."""
        paths = (self._with_path(path) if b":" in path else self._plain).get(verb)
        return paths.find(path) if paths is not None else None

    def verbs(self, path: bytes) -> list[str]:
        """Return the verbs that have an endpoint for a normalized path, in alphabetical order."""
        by_verb = self._with_path(path)
        return sorted(verb for verb, paths in by_verb.items() if paths.find(path) is not None)

    def _with_path(self, path: bytes) -> "Mapping[str, _Paths[E]]":
        custom = self._is_custom(path.decode("ascii", "replace"))
        return self._custom if custom is not None else self._plain


def _by_verb(endpoints: Mapping[tuple[str, str], E], *, custom: bool) -> "dict[str, _Paths[E]]":
    chosen: dict[str, dict[str, E]] = {}
    for (verb, path), endpoint in endpoints.items():
        if bool(_split(path)[1]) is custom:
            chosen.setdefault(verb, {})[path] = endpoint
    by_verb = {verb: _Paths(paths) for verb, paths in chosen.items()}
    return by_verb | ({"HEAD": by_verb[_SERVES_HEAD]} if _SERVES_HEAD in by_verb else {})


class _Paths(Generic[E]):
    """The endpoints of one verb."""

    def __init__(self, endpoints: Mapping[str, E]) -> None:
        self._fixed = {
            path.encode(): (endpoint, dict[str, str]())
            for path, endpoint in endpoints.items()
            if not _PARAMETER.search(path)
        }
        templates = sorted(filter(_PARAMETER.search, endpoints), key=precedence)
        self._endpoints = {f"t{i}": endpoints[path] for i, path in enumerate(templates)}
        self._parameters = {f"t{i}": _PARAMETER.findall(path) for i, path in enumerate(templates)}
        self._match = _matcher(templates)

    def find(self, path: bytes) -> tuple[E, dict[str, str]] | None:
        fixed = self._fixed.get(path)
        if fixed is not None:
            return fixed
        found = self._match(path.decode("ascii", "replace"))
        if found is None or found.lastgroup is None:
            return None
        values = [value for value in found.groups()[found.lastindex or 0 :] if value is not None]
        names = self._parameters[found.lastgroup]
        texts = map(path_value, values[: len(names)])
        return self._endpoints[found.lastgroup], dict(zip(names, texts, strict=True))


def precedence(template: str) -> tuple[object, ...]:
    """Return the sort key of a path template: the first template that matches a path is used.

    Templates with a custom verb are first, then those with literal text in an earlier segment.
    """
    path, verb = _split(template)
    segments = path.split("/")
    parameters = [segment.startswith("{") for segment in segments]
    return (not verb, parameters, segments)


def _matcher(templates: Iterable[str]) -> Callable[[str], re.Match[str] | None]:
    patterns = [f"(?P<t{i}>{_pattern(path)})" for i, path in enumerate(templates)]
    return re.compile("|".join(patterns) or "(?!)").fullmatch


def _pattern(template: str) -> str:
    path, verb = _split(template)
    parts = _PARAMETER.split(path)  # literal, name, literal, name, ...
    text = "".join("([^/]+?)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    return text + re.escape(verb)


def _split(template: str) -> tuple[str, str]:
    """Return the path and the custom verb after its last segment, such as `:publish`."""
    path, colon, verb = template.rpartition(":")
    return (path, colon + verb) if colon and "/" not in verb and "}" not in verb else (template, "")
