"""Checks of a contract: everything that some output cannot express is refused before generation."""

import re
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from protovalidate import CompilationError, Validator

from postbus_runtime.contract import ContractError
from postbus_runtime.options import Access, EventOptions
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.name_table import check_names

__all__ = ["check_contracts"]

_RATE: Final = re.compile(r"[1-9][0-9]*/(second|minute|hour|day)")
_INTEGERS: Final = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
}


def check_contracts(contracts: Contracts) -> None:
    """Raise ContractError for the first part of the contracts that is not supported."""
    for error in _errors(contracts):
        raise error
    check_names(contracts)
    _compile_rules(contracts)


def _errors(contracts: Contracts) -> Iterator[ContractError]:
    for file in contracts.files:
        if contracts.syntax(file) != "proto3":
            yield ContractError(file, 'only syntax = "proto3" is supported')
        if not file.package.startswith(f"{contracts.root}."):
            yield ContractError(file, f"its package must begin with {contracts.root}.")
    for message in contracts.messages:
        if options := contracts.event_options.get(message.full_name):
            yield from _in_event(message, options)
    for method in contracts.methods:
        yield from _in_types(method)
        yield from _in_method(contracts, method)


def _in_types(method: MethodDescriptor) -> Iterator[ContractError]:
    for kind in (method.input_type, method.output_type):
        if kind.full_name.startswith("google.") and kind.full_name != "google.protobuf.Empty":
            yield ContractError(method, f"wrap {kind.full_name} in a message of your own")
    if method.client_streaming:
        yield ContractError(method, "a stream of requests is not supported: only of responses")


def _in_method(contracts: Contracts, method: MethodDescriptor) -> Iterator[ContractError]:
    options = contracts.method_options[method.full_name]
    if options.access is None:
        yield ContractError(method, "state its access: (postbus.options.v1.method).access")
    if options.rate_limit and not _RATE.fullmatch(options.rate_limit):
        yield ContractError(method, f"rate_limit is not like `20/minute`: {options.rate_limit}")
    if options.callers and options.access is not Access.INTERNAL:
        yield ContractError(method, "a method with callers has access: ACCESS_INTERNAL")
    if fault := _integer_fault(method.output_type, options.version):
        yield ContractError(method, f"the version of the response is {fault}: {options.version}")
    name = options.expected_version
    field = method.input_type.fields_by_name.get(name)
    if name and not _is_single(field, FieldDescriptor.TYPE_INT64):
        yield ContractError(method, f"expected_version is not an int64 of the request: {name}")


def _in_event(event: Descriptor, options: EventOptions) -> Iterator[ContractError]:
    if options.subject not in event.fields_by_name:
        text = f"the event's subject is not a field of it: {options.subject}"
        yield ContractError(event, text)
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
        kind = field.message_type
    return "not an integer" if field is not None and field.cpp_type not in _INTEGERS else ""


def _compile_rules(contracts: Contracts) -> None:
    validator = Validator()  # it caches messages by name, which differ between contracts
    for message in contracts.messages:
        try:
            validator.collect_violations(GetMessageClass(message)())
        except CompilationError as error:
            raise ContractError(message, str(error).splitlines()[0]) from None
