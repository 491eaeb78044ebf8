"""Rules on methods: as routes (REST) and by routing key (WebSocket, bus)."""

from collections.abc import Iterator

from google.protobuf.descriptor import MethodDescriptor

from gateway.routing import precedence
from tools.contracts.compatibility.findings import Audience, Breaks, Change, anyone
from tools.contracts.compatibility.surface import ACCESS, Pair, Route, Surface

__all__ = ["METHOD_RULES", "ROUTE_RULES", "captured_routes", "removed_methods", "removed_routes"]

_METHOD = "postbus.options.v1.method"
_USER = ACCESS.index("USER")
_DEFAULT_TIMEOUT_MS = 5000


def removed_routes(old: Surface, new: Surface) -> Iterator[Change]:
    """A verb and path that are answered no more, whatever their method is called."""
    for key, route in old.routes.items():
        if key not in new.routes and not old.is_internal(route.method):
            now = [str(each) for each in new.routes.values() if _is_new(each, route, old)]
            yield Change(
                name=route.method.full_name,
                what="route removed",
                before=str(route),
                after=", ".join(now) or "gone",
            )


def _is_new(route: Route, gone: Route, old: Surface) -> bool:
    same_method = route.method.full_name == gone.method.full_name
    return same_method and f"{route.verb} {route.url}" not in old.routes


def captured_routes(old: Surface, new: Surface) -> Iterator[Change]:
    """Requests that reach another method, or none, because a new route comes first."""
    for key in old.routes.keys() & new.routes.keys():
        route, known = new.routes[key], {each.url for each in _ahead(old, old.routes[key])}
        for other in _ahead(new, route):
            if other.url not in known:
                whole = other.answers(route.url)
                yield Change(
                    name=route.method.full_name,
                    what="route captured" if whole else "route captured in part",
                    before=str(route),
                    after=f"{other} of {other.method.full_name} comes first",
                    notice=not whole,
                )


def _ahead(surface: Surface, route: Route) -> list[Route]:
    """The routes that the gateway tries before this one and that share URLs with it.

    Those of the same verb, and those with a custom verb (`:publish`), whatever their HTTP verb.
    """
    order = precedence(route.template)
    return [
        each
        for each in surface.routes.values()
        if not surface.is_internal(each.method)
        and (before := precedence(each.template)) < order
        and (each.verb == route.verb or before[0] != order[0])
        and (each.answers(route.url) or route.answers(each.url))
    ]


def removed_methods(old: Surface, new: Surface) -> Iterator[Change]:
    """A routing key that nobody serves: the method, its service or its package has gone."""
    for name in old.methods.keys() - new.methods.keys():
        yield Change(name=name, what="method removed", before=name, after="gone")


def _parameters(pair: Pair[Route]) -> Iterator[Change]:
    """Clients made from OpenAPI name their arguments after the path's parameters."""
    if pair.before.parameters != pair.after.parameters:
        yield _of_route(pair, "path parameters renamed", pair.before, pair.after)


def _body(pair: Pair[Route]) -> Iterator[Change]:
    """Another part of the request is the body."""
    if pair.before.body != pair.after.body:
        yield _of_route(pair, "body changed", pair.before.body, pair.after.body)


def _response_body(pair: Pair[Route]) -> Iterator[Change]:
    """Another part of the response is the body."""
    before, after = pair.before.response_body, pair.after.response_body
    if before != after:
        yield _of_route(pair, "response_body changed", before, after)


def _status(pair: Pair[Route]) -> Iterator[Change]:
    """Another status says success."""
    before, after = (
        (options.get("http_status", 200) if route.method.output_type.fields else 204)
        for options, route in zip(_method_options(pair), (pair.before, pair.after), strict=True)
    )
    if before != after:
        yield _of_route(pair, "status changed", before, after)


def _method_options(pair: Pair[Route]) -> tuple[dict[str, int], dict[str, int]]:
    return pair.of(pair.before.method, pair.after.method).options(_METHOD)


def _fields_moved(pair: Pair[Route]) -> Iterator[Change]:
    """A field goes elsewhere in the request; where the whole body changed, that says it."""
    before, after = _places(pair.old, pair.before), _places(pair.new, pair.after)
    for name in before.keys() & after.keys():
        moved = before[name] != after[name]
        if moved and ("path" in (before[name], after[name]) or pair.before.body == pair.after.body):
            yield _of_route(pair, f"field {name} moved", before[name], after[name])


def _places(surface: Surface, route: Route) -> dict[str, str]:
    in_path = {parameter.split(".")[0] for parameter in route.parameters}
    in_header = surface.options(route.method, _METHOD).get("expected_version")

    def place(field: str) -> str:
        if field == in_header:
            return "If-Match"
        if field in in_path:
            return "path"
        return "body" if route.body in ("*", field) else "query"

    return {field.name: place(field.name) for field in route.method.input_type.fields}


def _of_route(pair: Pair[Route], what: str, before: object, after: object) -> Change:
    route = "" if isinstance(before, Route) else f"{pair.after}: "
    return Change(
        name=pair.after.method.full_name,
        what=route + what,
        before=str(before) or "none",
        after=str(after) or "none",
    )


def _streaming(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """One message became many, or many one."""
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
    """The JSON of an Any carries its type's name. Fields are compared whatever their message."""
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
    """Clients are shut out. A worker may still call what is internal."""
    before, after = _accesses(pair)
    if after > before:
        yield _of_access(pair, "access tightened", lambda use: use.audience is not Audience.WORKER)


def _access_loosened(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """More people are let in, which is to be meant."""
    before, after = _accesses(pair)
    if after < before:
        yield _of_access(pair, "access loosened, mind security", anyone, notice=True)


def _token_required(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """A worker that calls for itself has no access token."""
    before, after = _accesses(pair)
    if after == _USER != before:
        yield _of_access(
            pair, "access token now required", lambda use: use.audience is Audience.WORKER
        )


def _accesses(pair: Pair[MethodDescriptor]) -> tuple[int, int]:
    before, after = (options.get("access", 0) for options in pair.options(_METHOD))
    return before, after


def _of_access(
    pair: Pair[MethodDescriptor], what: str, breaks: Breaks, *, notice: bool = False
) -> Change:
    before, after = _accesses(pair)
    return Change(
        name=pair.after.full_name,
        what=what,
        before=ACCESS[before],
        after=ACCESS[after],
        breaks=breaks,
        notice=notice,
    )


def _idempotency(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Callers repeat what promises to be safe or idempotent."""
    names = ("IDEMPOTENCY_UNKNOWN", "NO_SIDE_EFFECTS", "IDEMPOTENT")
    before, after = (
        names[method.GetOptions().idempotency_level] for method in (pair.before, pair.after)
    )
    promises = ("IDEMPOTENCY_UNKNOWN", "IDEMPOTENT", "NO_SIDE_EFFECTS")
    if promises.index(after) < promises.index(before):
        yield Change(
            name=pair.after.full_name, what="idempotency weakened", before=before, after=after
        )


def _timeout(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """Callers that state no budget get less."""
    before, after = (
        options.get("default_timeout_ms") or _DEFAULT_TIMEOUT_MS
        for options in pair.options(_METHOD)
    )
    if after < before:
        yield Change(
            name=pair.after.full_name,
            what="default timeout lowered",
            before=f"{before} ms",
            after=f"{after} ms",
            notice=True,
        )


def _conditions(pair: Pair[MethodDescriptor]) -> Iterator[Change]:
    """The ETag no longer has a version, or If-Match is refused."""
    before, after = pair.options(_METHOD)
    for option in ("version", "expected_version"):
        if option in before and option not in after:
            yield Change(
                name=pair.after.full_name,
                what=f"{option} lost",
                before=before[option],
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
