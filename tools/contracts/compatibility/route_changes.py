"""Rules on routes: the verbs, paths, bodies and statuses of REST clients."""

from collections.abc import Iterator

from google.protobuf.descriptor import MethodDescriptor

from gateway.routing import precedence
from tools.contracts.compatibility.findings import Change
from tools.contracts.compatibility.kinds import Kind
from tools.contracts.compatibility.surface import Pair, Route, Surface

__all__ = ["ROUTE_RULES", "removed_routes", "shadowed_routes"]


def removed_routes(old: Surface, new: Surface) -> Iterator[Change]:
    """Yield the verbs and paths that are no longer served by any method."""
    for key, route in old.routes.items():
        if key not in new.routes and not old.is_internal(route.method):
            now = [str(each) for each in new.routes.values() if _replaces(each, route, old)]
            yield Change(
                name=route.method.full_name,
                kind=Kind.ROUTE_REMOVED,
                before=str(route),
                after=", ".join(now) or "removed",
            )


def _replaces(route: Route, removed: Route, old: Surface) -> bool:
    same_method = route.method.full_name == removed.method.full_name
    return same_method and f"{route.verb} {route.url}" not in old.routes


def shadowed_routes(old: Surface, new: Surface) -> Iterator[Change]:
    """Yield routes that a new route of higher precedence shadows, fully or in part."""
    for key in old.routes.keys() & new.routes.keys():
        route, known = new.routes[key], {each.url for each in _earlier_routes(old, old.routes[key])}
        for other in _earlier_routes(new, route):
            if other.url not in known:
                whole = other.matches(route.url)
                yield Change(
                    name=route.method.full_name,
                    kind=Kind.ROUTE_SHADOWED if whole else Kind.ROUTE_SHADOWED_IN_PART,
                    before=str(route),
                    after=f"{other} of {other.method.full_name} is matched first",
                    notice=not whole,
                )


def _earlier_routes(surface: Surface, route: Route) -> list[Route]:
    """Return the routes that share URLs with this one and that the gateway matches before it.

    They have the same HTTP verb, or a custom verb (`:publish`) with any HTTP verb.
    """
    order = precedence(route.template)
    return [
        each
        for each in surface.routes.values()
        if not surface.is_internal(each.method)
        and (before := precedence(each.template)) < order
        and (each.verb == route.verb or before[0] != order[0])
        and (each.matches(route.url) or route.matches(each.url))
    ]


def _parameters(pair: Pair[Route]) -> Iterator[Change]:
    """Yield renamed path parameters: generated clients use them as names of arguments."""
    if pair.before.patterns != pair.after.patterns:
        yield _of_route(pair, Kind.PARAMETERS_RENAMED, pair.before, pair.after)


def _body(pair: Pair[Route]) -> Iterator[Change]:
    """Yield a change of the field of the request that is the body."""
    if pair.before.body != pair.after.body:
        yield _of_route(pair, Kind.BODY_CHANGED, pair.before.body, pair.after.body)


def _response_body(pair: Pair[Route]) -> Iterator[Change]:
    """Yield a change of the field of the response that is the body."""
    before, after = pair.before.response_body, pair.after.response_body
    if before != after:
        yield _of_route(pair, Kind.RESPONSE_BODY_CHANGED, before, after)


def _status(pair: Pair[Route]) -> Iterator[Change]:
    """Yield a change of the status of success."""
    before, after = (
        surface.method_options(route.method).http_status or _default_status(route.method)
        for surface, route in ((pair.old, pair.before), (pair.new, pair.after))
    )
    if before != after:
        yield _of_route(pair, Kind.STATUS_CHANGED, before, after)


def _default_status(method: MethodDescriptor) -> int:
    return 200 if method.output_type.fields or method.server_streaming else 204


def _fields_moved(pair: Pair[Route]) -> Iterator[Change]:
    """Yield fields that moved between path, query, header and body."""
    before, after = _request_parts(pair.old, pair.before), _request_parts(pair.new, pair.after)
    for name in before.keys() & after.keys():
        moved = before[name] != after[name]
        if moved and ("path" in (before[name], after[name]) or pair.before.body == pair.after.body):
            yield _of_route(pair, Kind.FIELD_MOVED, before[name], after[name], field=name)


def _request_parts(surface: Surface, route: Route) -> dict[str, str]:
    """Return the part of an HTTP request that sets each field, by the name of the field."""
    in_path = {parameter.split(".")[0] for parameter in route.parameters}
    in_header = surface.method_options(route.method).expected_version

    def part(field: str) -> str:
        if field == in_header:
            return "If-Match"
        if field in in_path:
            return "path"
        return "body" if route.body in ("*", field) else "query"

    return {field.name: part(field.name) for field in route.method.input_type.fields}


def _of_route(
    pair: Pair[Route], kind: Kind, before: object, after: object, *, field: str = ""
) -> Change:
    route = "" if isinstance(before, Route) else str(pair.after)
    return Change(
        name=pair.after.method.full_name,
        kind=kind,
        detail=f"{field} of {route}" if field else route,
        before=str(before) or "none",
        after=str(after) or "none",
    )


ROUTE_RULES = (_parameters, _body, _response_body, _status, _fields_moved)
