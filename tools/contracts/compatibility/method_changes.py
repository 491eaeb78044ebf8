"""Rules on methods: as routes (REST) and by routing key (WebSocket, bus)."""

from collections.abc import Iterator
from typing import Final

from google.protobuf.descriptor import MethodDescriptor

from gateway.routing import precedence
from postbus_runtime.options import Access, Idempotency
from tools.contracts.compatibility.findings import Audience, Breaks, Change, every_use
from tools.contracts.compatibility.surface import Pair, Route, Surface, access_rank

__all__ = ["METHOD_RULES", "ROUTE_RULES", "removed_methods", "removed_routes", "shadowed_routes"]

_PROMISES: Final = (Idempotency.UNKNOWN, Idempotency.IDEMPOTENT, Idempotency.NO_SIDE_EFFECTS)
"""From the weakest to the strongest."""


def removed_routes(old: Surface, new: Surface) -> Iterator[Change]:
    """Yield the verbs and paths that are no longer served by any method."""
    for key, route in old.routes.items():
        if key not in new.routes and not old.is_internal(route.method):
            now = [str(each) for each in new.routes.values() if _replaces(each, route, old)]
            yield Change(
                name=route.method.full_name,
                what="route removed",
                before=str(route),
                after=", ".join(now) or "gone",
            )


def _replaces(route: Route, removed: Route, old: Surface) -> bool:
    same_method = route.method.full_name == removed.method.full_name
    return same_method and f"{route.verb} {route.url}" not in old.routes


def shadowed_routes(old: Surface, new: Surface) -> Iterator[Change]:
    """Yield the routes whose requests a new route of higher precedence takes, all or some."""
    for key in old.routes.keys() & new.routes.keys():
        route, known = new.routes[key], {each.url for each in _earlier_routes(old, old.routes[key])}
        for other in _earlier_routes(new, route):
            if other.url not in known:
                whole = other.matches(route.url)
                yield Change(
                    name=route.method.full_name,
                    what="route shadowed" if whole else "route shadowed in part",
                    before=str(route),
                    after=f"{other} of {other.method.full_name} comes first",
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


def removed_methods(old: Surface, new: Surface) -> Iterator[Change]:
    """Yield the routing keys of removed methods, services and packages."""
    for name in old.methods.keys() - new.methods.keys():
        yield Change(name=name, what="method removed", before=name, after="gone")


def _parameters(pair: Pair[Route]) -> Iterator[Change]:
    """Yield renamed path parameters: generated clients use them as names of arguments."""
    if pair.before.parameters != pair.after.parameters:
        yield _of_route(pair, "path parameters renamed", pair.before, pair.after)


def _body(pair: Pair[Route]) -> Iterator[Change]:
    """Yield a change of the field of the request that is the body."""
    if pair.before.body != pair.after.body:
        yield _of_route(pair, "body changed", pair.before.body, pair.after.body)


def _response_body(pair: Pair[Route]) -> Iterator[Change]:
    """Yield a change of the field of the response that is the body."""
    before, after = pair.before.response_body, pair.after.response_body
    if before != after:
        yield _of_route(pair, "response_body changed", before, after)


def _status(pair: Pair[Route]) -> Iterator[Change]:
    """Yield a change of the status of success."""
    before, after = (
        (surface.method_options(route.method).http_status or 200)
        if route.method.output_type.fields
        else 204
        for surface, route in ((pair.old, pair.before), (pair.new, pair.after))
    )
    if before != after:
        yield _of_route(pair, "status changed", before, after)


def _fields_moved(pair: Pair[Route]) -> Iterator[Change]:
    """Yield fields that moved between path, query, header and body."""
    before, after = _request_parts(pair.old, pair.before), _request_parts(pair.new, pair.after)
    for name in before.keys() & after.keys():
        moved = before[name] != after[name]
        if moved and ("path" in (before[name], after[name]) or pair.before.body == pair.after.body):
            yield _of_route(pair, f"field {name} moved", before[name], after[name])


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


def _of_route(pair: Pair[Route], what: str, before: object, after: object) -> Change:
    route = "" if isinstance(before, Route) else f"{pair.after}: "
    return Change(
        name=pair.after.method.full_name,
        what=route + what,
        before=str(before) or "none",
        after=str(after) or "none",
    )


def _streaming(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a change between one message and a stream."""
    before, after = (_cardinality(method) for method in (pair.before, pair.after))
    if before != after:
        yield Change(
            name=pair.after.full_name, what="streaming changed", before=before, after=after
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
    for what in ("input_type", "output_type"):
        before, after = getattr(pair.before, what), getattr(pair.after, what)
        if before.full_name != after.full_name:
            yield Change(
                name=pair.after.full_name,
                what="request type changed" if what == "input_type" else "response type changed",
                before=before.full_name,
                after=after.full_name,
                breaks=lambda use: use.audience is Audience.WEBSOCKET,
            )


def _access_tightened(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a narrower access: it excludes clients; workers may call internal methods."""
    before, after = _accesses(pair)
    if access_rank(after) > access_rank(before):
        yield _of_access(pair, "access tightened", lambda use: use.audience is not Audience.WORKER)


def _access_loosened(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a wider access, which needs attention: more clients may call the method."""
    before, after = _accesses(pair)
    if access_rank(after) < access_rank(before):
        yield _of_access(pair, "access loosened, mind security", every_use, notice=True)


def _token_required(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a required access token: workers that call without a user have none."""
    before, after = _accesses(pair)
    if after is Access.USER and before is not Access.USER:
        yield _of_access(
            pair, "access token now required", lambda use: use.audience is Audience.WORKER
        )


def _accesses(pair: Pair[MethodDescriptor]) -> tuple[Access | None, Access | None]:
    before, after = pair.method_options()
    return before.access, after.access


def _of_access(
    pair: Pair[MethodDescriptor], what: str, breaks: Breaks, *, notice: bool = False
) -> Change:
    before, after = _accesses(pair)
    return Change(
        name=pair.after.full_name,
        what=what,
        before=before or "UNSPECIFIED",
        after=after or "UNSPECIFIED",
        breaks=breaks,
        notice=notice,
    )


def _idempotency(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a weaker promise: callers repeat safe and idempotent methods."""
    before, after = (options.idempotency for options in pair.method_options())
    if _PROMISES.index(after) < _PROMISES.index(before):
        yield Change(
            name=pair.after.full_name, what="idempotency weakened", before=before, after=after
        )


def _timeout(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a lower default timeout, for callers that set no budget."""
    before, after = (options.timeout_ms for options in pair.method_options())
    if after < before:
        yield Change(
            name=pair.after.full_name,
            what="default timeout lowered",
            before=f"{before} ms",
            after=f"{after} ms",
            notice=True,
        )


def _conditions(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Yield a lost version: the ETag has none any more, or If-Match is refused."""
    before, after = pair.method_options()
    for option, lost, kept in (
        ("version", before.version, after.version),
        ("expected_version", before.expected_version, after.expected_version),
    ):
        if lost and not kept:
            yield Change(
                name=pair.after.full_name,
                what=f"{option} lost",
                before=lost,
                after="none",
                breaks=lambda use: use.audience is Audience.REST,
            )


ROUTE_RULES = (_parameters, _body, _response_body, _status, _fields_moved)
METHOD_RULES = (
    _streaming,
    _types,
    _access_tightened,
    _access_loosened,
    _token_required,
    _idempotency,
    _timeout,
    _conditions,
)
