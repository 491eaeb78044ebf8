"""The options of our own (postbus.options.v1), read and checked."""

import re
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from tools.contracts.generate.descriptors import Contracts, GeneratorError
from tools.contracts.generate.names import field_name

__all__ = [
    "aggregate_version",
    "ended_sessions",
    "event_access",
    "expected_version",
    "from_headers",
    "method_access",
    "rate_limit",
    "recipient",
    "response_version",
]

_METHOD: Final = "postbus.options.v1.method"
_EVENT: Final = "postbus.options.v1.event"
_ACCESS: Final = {1: "PUBLIC", 2: "USER", 3: "INTERNAL"}
_RATE: Final = re.compile(r"[1-9][0-9]*/(second|minute|hour|day)")
_INTEGERS: Final = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
}


def method_access(contracts: Contracts, method: MethodDescriptor) -> str:
    """Return PUBLIC, USER or INTERNAL; GeneratorError where the method says none."""
    access = contracts.option(method, _METHOD).access
    if access not in _ACCESS:
        raise GeneratorError(method, "say who may call it: (postbus.options.v1.method).access")
    return _ACCESS[access]


def rate_limit(contracts: Contracts, method: MethodDescriptor) -> str:
    """Return the rate of a method, such as `20/minute`; empty if it has none of its own."""
    rate: str = contracts.option(method, _METHOD).rate_limit
    if rate and not _RATE.fullmatch(rate):
        raise GeneratorError(method, f"rate_limit is not like `20/minute`: {rate}")
    return rate


def response_version(contracts: Contracts, method: MethodDescriptor) -> tuple[str, ...]:
    """Return the names of proto along the path of the response's version; none without one."""
    path = contracts.option(method, _METHOD).version
    fields = _integer(method, method.output_type, path, "the version of the response")
    return tuple(field.name for field in fields)


def expected_version(contracts: Contracts, method: MethodDescriptor) -> str:
    """Return the name of the request's field with the expected version; empty without one."""
    name: str = contracts.option(method, _METHOD).expected_version
    field = method.input_type.fields_by_name.get(name)
    if name and not _is_single(field, FieldDescriptor.TYPE_INT64):
        raise GeneratorError(method, f"expected_version is not an int64 of the request: {name}")
    return name


def from_headers(contracts: Contracts) -> frozenset[str]:
    """Return the full names of the fields that REST sets from headers, and from nowhere else."""
    return frozenset(
        f"{method.input_type.full_name}.{name}"
        for method in contracts.methods
        if (name := expected_version(contracts, method))
    )


def aggregate_version(contracts: Contracts, event: Descriptor) -> tuple[str, ...]:
    """Return the names of Python along the path of the aggregate's version; none without one."""
    path = contracts.option(event, _EVENT).aggregate_version
    fields = _integer(event, event, path, "the event's aggregate_version")
    return tuple(field_name(field) for field in fields)


def event_access(contracts: Contracts, event: Descriptor) -> str:
    """Return PUBLIC, USER or, where the event says nothing, INTERNAL."""
    return _ACCESS.get(contracts.option(event, _EVENT).access, "INTERNAL")


def recipient(contracts: Contracts, event: Descriptor) -> str:
    """Return the name of the field with the one user who may hear of it; empty without one."""
    name: str = contracts.option(event, _EVENT).recipient
    for_a_user = event_access(contracts, event) == "USER"
    if name and not for_a_user:
        raise GeneratorError(event, "an event with a recipient has access: ACCESS_USER")
    field = event.fields_by_name.get(name)
    if for_a_user and not _is_single(field, FieldDescriptor.TYPE_STRING):
        raise GeneratorError(
            event, f"the event's recipient is not a string of it: {name or 'none'}"
        )
    return name


def ended_sessions(contracts: Contracts, event: Descriptor) -> str:
    """Return the name of Python of the field with the ids of ended sessions; empty without one."""
    name: str = contracts.option(event, _EVENT).ended_sessions
    if not name:
        return ""
    field = event.fields_by_name.get(name)
    if field is None or field.type != FieldDescriptor.TYPE_STRING or not field.is_repeated:
        raise GeneratorError(event, f"ended_sessions is not a repeated string of the event: {name}")
    return field_name(field)


def _is_single(field: FieldDescriptor | None, kind: int) -> bool:
    return field is not None and field.type == kind and not field.is_repeated


def _integer(where: Any, message: Descriptor, path: str, what: str) -> list[FieldDescriptor]:
    """Return the fields along the path, the last of which is one integer."""
    fields: list[FieldDescriptor] = []
    kind: Descriptor | None = message
    for part in path.split(".") if path else ():
        field = kind.fields_by_name.get(part) if kind else None
        if field is None or field.is_repeated:
            raise GeneratorError(where, f"{what} is not a field: {path}")
        fields.append(field)
        kind = field.message_type
    if fields and fields[-1].cpp_type not in _INTEGERS:
        raise GeneratorError(where, f"{what} is not an integer: {path}")
    return fields
