"""Checks of the options of methods and events: each has an effect, and none contradicts another."""

import re
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from postbus_runtime.contract import ContractError
from postbus_runtime.fields import is_plain_message
from postbus_runtime.options import Access, EventOptions
from tools.contracts.generate.descriptors import Contracts

__all__ = ["event_errors", "method_errors"]

_MAX_TIMEOUT_MS: Final = 60_000
"""Longest budget of a call; a worker reduces a longer one to it."""
_RATE: Final = re.compile(r"[1-9][0-9]*/(second|minute|hour|day)")
_INTEGERS: Final = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
}


def method_errors(contracts: Contracts, method: MethodDescriptor) -> Iterator[ContractError]:
    """Yield an error for each option of a method that is invalid or has no effect."""
    options = contracts.method_options[method.full_name]
    if options.access is None:
        yield ContractError(method, "state its access: (postbus.options.v1.method).access")
    if options.timeout_ms > _MAX_TIMEOUT_MS:
        text = f"default_timeout_ms is above {_MAX_TIMEOUT_MS}: {options.timeout_ms}"
        yield ContractError(method, text)
    if options.rate_limit and not _RATE.fullmatch(options.rate_limit):
        yield ContractError(method, f"rate_limit is not like `20/minute`: {options.rate_limit}")
    if options.rate_limit and options.access is Access.INTERNAL:
        yield ContractError(method, "rate_limit has no effect with ACCESS_INTERNAL: remove it")
    if options.callers and options.access is not Access.INTERNAL:
        yield ContractError(method, "a method with callers has access: ACCESS_INTERNAL")
    if fault := _integer_fault(method.output_type, options.version):
        yield ContractError(method, f"the version of the response is {fault}: {options.version}")
    name = options.expected_version
    field = method.input_type.fields_by_name.get(name)
    if name and not _is_single(field, FieldDescriptor.TYPE_INT64):
        yield ContractError(method, f"expected_version is not an int64 of the request: {name}")


def event_errors(event: Descriptor, options: EventOptions) -> Iterator[ContractError]:
    """Yield an error for each option of an event that is invalid."""
    subject = event.fields_by_name.get(options.subject)
    if subject is None:
        text = f"the event's subject is not a field of it: {options.subject or 'none'}"
        yield ContractError(event, text)
    elif not _is_single(subject, FieldDescriptor.TYPE_STRING):
        yield ContractError(event, f"the event's subject is not one string: {options.subject}")
    if fault := _integer_fault(event, options.aggregate_version):
        text = f"the event's aggregate_version is {fault}: {options.aggregate_version}"
        yield ContractError(event, text)
    for_a_user = options.access is Access.USER
    if options.recipient and not for_a_user:
        yield ContractError(event, "an event with a recipient has access: ACCESS_USER")
    recipient = event.fields_by_name.get(options.recipient)
    if for_a_user and not _is_single(recipient, FieldDescriptor.TYPE_STRING):
        text = f"the event's recipient is not a string of it: {options.recipient or 'none'}"
        yield ContractError(event, text)
    ended = event.fields_by_name.get(options.ended_sessions)
    if options.ended_sessions and not _is_list(ended, FieldDescriptor.TYPE_STRING):
        text = f"ended_sessions is not a repeated string of the event: {options.ended_sessions}"
        yield ContractError(event, text)


def _is_single(field: FieldDescriptor | None, kind: int) -> bool:
    return field is not None and field.type == kind and not field.is_repeated


def _is_list(field: FieldDescriptor | None, kind: int) -> bool:
    return field is not None and field.type == kind and field.is_repeated


def _integer_fault(message: Descriptor, path: str) -> str:
    """Return the fault of a path that must lead to one integer; "" if it has none."""
    field: Any = None
    kind: Descriptor | None = message
    for part in path.split(".") if path else ():
        field = kind.fields_by_name.get(part) if kind else None
        if field is None or field.is_repeated:
            return "not a field"
        kind = field.message_type if is_plain_message(field) else None
    return "not an integer" if field is not None and field.cpp_type not in _INTEGERS else ""
