"""Paths of the contract to endpoints: one regular expression for all of them."""

import re
from collections.abc import Mapping
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["ContractRoutes"]

_PARAMETER = re.compile(r"\{([^}]+)\}")


class ContractRoutes:
    """ASGI middleware that serves each path template (`/v1/posts/{id}:publish`) by its endpoint.

    It comes before FastAPI's own router, which would ask each of its routes in turn; what fits no
    template goes there.
    A parameter is one segment, which may hold an escaped slash (RFC 3986, section 2.2). Where two
    templates fit, the one with the literal text further in front wins.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, ASGIApp]) -> None:
        self._app = app
        templates = sorted(endpoints, key=_by_literals)
        self._endpoints = {f"t{i}": endpoints[path] for i, path in enumerate(templates)}
        self._parameters = {f"t{i}": _PARAMETER.findall(path) for i, path in enumerate(templates)}
        self._pattern = re.compile(
            "|".join(f"(?P<t{i}>{_pattern(path)})" for i, path in enumerate(templates))
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request by its endpoint, with `path_params`."""
        app = self._found(scope) if scope["type"] == "http" else None
        await (app or self._app)(scope, receive, send)

    def _found(self, scope: Scope) -> ASGIApp | None:
        path = scope.get("raw_path") or scope["path"].encode()
        found = self._pattern.fullmatch(path.decode("ascii", "replace"))
        if found is None or found.lastgroup is None:
            return None
        values = [value for value in found.groups()[found.lastindex or 0 :] if value is not None]
        names = self._parameters[found.lastgroup]
        scope["path_params"] = {
            name: unquote(value, errors="surrogateescape")  # the transcoder refuses surrogates
            for name, value in zip(names, values[: len(names)], strict=True)
        }
        return self._endpoints[found.lastgroup]


def _pattern(template: str) -> str:
    path, verb = _split(template)
    parts = _PARAMETER.split(path)  # literal, name, literal, name, ...
    text = "".join("([^/]+?)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    return text + re.escape(verb)


def _split(template: str) -> tuple[str, str]:
    """A custom verb, such as `:publish`, follows the last segment."""
    path, colon, verb = template.rpartition(":")
    return (path, colon + verb) if colon and "/" not in verb and "}" not in verb else (template, "")


def _by_literals(template: str) -> tuple[object, ...]:
    path, verb = _split(template)
    segments = [(segment.startswith("{"), segment) for segment in path.split("/")]
    return (not verb, segments)
