"""Every method, event and message of a contract as frozen objects, read from its descriptors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import betterproto
from google.protobuf.descriptor import Descriptor, MethodDescriptor

from postbus_runtime.contract import Contract
from postbus_runtime.fields import fields_along
from postbus_runtime.http_rules import Binding, bindings, json_path
from postbus_runtime.locations import location
from postbus_runtime.names import class_of, field_name, method_name, service_class
from postbus_runtime.options import Access, EventOptions, Idempotency

__all__ = [
    "Access",
    "EventType",
    "HttpRule",
    "Idempotency",
    "Method",
    "read_events",
    "read_messages",
    "read_methods",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRule:
    """A verb and path of a method over REST (google.api.http), with the status of success.

    `variables` pairs each field that the path sets, as a JSON path, with its path parameters.
    `body` and `response_body` are JSON names. `location` leads to a created resource: the path of
    its collection, then the proto names of the path to its id in the response; it is empty if no
    method reads the resource.
    """

    verb: str
    path: str
    variables: tuple[tuple[str, str], ...]
    body: str
    response_body: str
    status: int
    location: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """An rpc. `name` is its routing key, `timeout` the default budget in seconds.

    `streams`: the replies are a stream. `secret_response`: the response must not be stored.
    `ends_session`: a call may end the caller's session. `version` is the path of the version in
    the response, `expected_version` the field of the request with the version that must be
    current; both have the names of proto, and are empty if there is none. `rate_limit` is the
    number of calls that a client may make in a period, such as `20/minute`. `callers` are the
    services that may call the method; empty: every service that may send to the worker. `reasons`
    are those that the method names; it may also answer every reason with `Scope.CALL`.
    """

    name: str
    worker: str
    service: str
    route: str
    handler: str
    request: type[betterproto.Message]
    response: type[betterproto.Message]
    request_name: str
    response_name: str
    access: Access
    timeout: float
    streams: bool
    idempotency: Idempotency
    secret_response: bool
    ends_session: bool
    version: tuple[str, ...]
    expected_version: str
    rate_limit: str
    callers: frozenset[str]
    reasons: frozenset[str]
    http: tuple[HttpRule, ...]
    has_side_effects: bool = field(init=False)

    def __post_init__(self) -> None:
        """Compute the derived field once: every call reads it."""
        changes = self.idempotency is not Idempotency.NO_SIDE_EFFECTS
        object.__setattr__(self, "has_side_effects", changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventType:
    """An event. `name` is its routing key, `subject` the field with the id of the aggregate.

    `version` is the event schema version. `aggregate_version` is the path of the field with the
    aggregate version, empty if there is none. `access` limits the clients that may subscribe; with
    USER, `recipient` is the field with the id of the only user who may. `ended_sessions` is the
    field with the ids of the sessions that the event ends, empty if there is none.
    """

    name: str
    message: type[betterproto.Message]
    subject: str
    version: int
    aggregate_version: tuple[str, ...]
    access: Access
    recipient: str
    ended_sessions: str


def read_methods(contract: Contract) -> Mapping[str, Method]:
    """Return every method by its full name, in the order of the files."""
    rules = bindings(contract)
    return {each.full_name: _method(contract, each, rules) for each in contract.methods}


def read_events(contract: Contract) -> Mapping[str, EventType]:
    """Return every event by its full name."""
    return {
        message.full_name: _event(
            message, contract.event_options[message.full_name], contract.roots
        )
        for message in contract.messages
        if message.full_name in contract.event_options
    }


def read_messages(contract: Contract) -> Mapping[str, type[betterproto.Message]]:
    """Return every message of the contract and of its methods, by its full name."""
    known = {message.full_name: message for message in contract.messages}
    for method in contract.methods:
        for message in (method.input_type, method.output_type):
            known.setdefault(message.full_name, message)
    return {name: class_of(known[name], contract.roots) for name in sorted(known)}


def _method(
    contract: Contract, method: MethodDescriptor, rules: Mapping[str, Sequence[Binding]]
) -> Method:
    service, options = method.containing_service, contract.method_options[method.full_name]
    if options.access is None:
        raise ValueError(f"{method.full_name} states no access")
    version = fields_along(method.output_type, options.version)
    return Method(
        name=method.full_name,
        worker=service.file.package.split(".")[1],
        service=service.full_name,
        route=f"/{service.full_name}/{method.name}",
        handler=f"{service.file.package}.{service_class(service)}Base.{method_name(method)}",
        request=class_of(method.input_type, contract.roots),
        response=class_of(method.output_type, contract.roots),
        request_name=method.input_type.full_name,
        response_name=method.output_type.full_name,
        access=options.access,
        timeout=options.timeout_ms / 1000,
        streams=method.server_streaming,
        idempotency=options.idempotency,
        secret_response=options.secret_response,
        ends_session=options.ends_session,
        version=tuple(each.name for each in version),
        expected_version=options.expected_version,
        rate_limit=options.rate_limit,
        callers=options.callers,
        reasons=frozenset(options.reasons),
        http=tuple(
            _http_rule(binding, location(contract, rules, method, binding))
            for binding in rules[method.full_name]
        ),
    )


def _http_rule(binding: Binding, location: tuple[str, ...]) -> HttpRule:
    return HttpRule(
        verb=binding.verb,
        path=binding.path,
        variables=tuple((json_path(path), parts) for path, parts in binding.variables),
        body=binding.body,
        response_body=binding.response_field.json_name if binding.response_field else "",
        status=binding.status,
        location=location,
    )


def _event(message: Descriptor, options: EventOptions, roots: tuple[str, ...]) -> EventType:
    version = fields_along(message, options.aggregate_version)
    ended = fields_along(message, options.ended_sessions)
    return EventType(
        name=message.full_name,
        message=class_of(message, roots),
        subject=options.subject,
        version=options.version,
        aggregate_version=tuple(field_name(each) for each in version),
        access=options.access,
        recipient=options.recipient,
        ended_sessions=".".join(field_name(each) for each in ended),
    )
