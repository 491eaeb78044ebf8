"""Checks of a contract: everything that some output cannot express is refused before generation."""

from collections.abc import Iterator

from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    MethodDescriptor,
)
from google.protobuf.descriptor_pb2 import DescriptorProto

from postbus_runtime.contract import ContractError
from postbus_runtime.fields import is_optional, value_of
from postbus_runtime.http_rules import bindings
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.http_checks import binding_errors, http_errors
from tools.contracts.generate.name_table import check_names
from tools.contracts.generate.names import reachable
from tools.contracts.generate.option_checks import event_errors, method_errors
from tools.contracts.generate.reasons import naming_errors, reason_errors, reasons_of
from tools.contracts.generate.rule_checks import compile_rules, enum_errors

__all__ = ["check_contracts"]


def check_contracts(contracts: Contracts) -> None:
    """Raise ContractError for the first part of the contracts that is not supported."""
    for error in _errors(contracts):
        raise error
    check_names(contracts)
    found = bindings(contracts)
    for method in contracts.methods:
        for error in binding_errors(contracts, method, found[method.full_name]):
            raise error
    compile_rules(contracts)


def _errors(contracts: Contracts) -> Iterator[ContractError]:
    for file in contracts.files:
        if contracts.syntax(file) != "proto3":
            yield ContractError(file, 'only syntax = "proto3" is supported')
        if not file.package.startswith(f"{contracts.root}."):
            yield ContractError(file, f"its package must begin with {contracts.root}.")
        if f"{file.package}.".startswith(f"{contracts.root}.imported."):
            text = f"{contracts.root}.imported has the classes of third-party messages"
            yield ContractError(file, text)
    yield from _unknown_values(contracts)
    for message in (*contracts.messages, *contracts.imported_messages):
        yield from _in_oneofs(message)
    for message in contracts.messages:
        if options := contracts.event_options.get(message.full_name):
            yield from event_errors(message, options)
    yield from _in_imports(contracts)
    yield from enum_errors(contracts)
    yield from reason_errors(contracts)
    reasons = reasons_of(contracts)
    for method in contracts.methods:
        yield from _in_types(contracts, method)
        yield from method_errors(contracts, method)
        named = contracts.method_options[method.full_name].reasons
        yield from naming_errors(method, named, reasons)
        yield from http_errors(contracts, method)


def _unknown_values(contracts: Contracts) -> Iterator[ContractError]:
    """Yield an error for each option with a number in place of a name, if there is no such name."""
    for owner in (*contracts.methods, *contracts.messages):
        yield from (ContractError(owner, text) for text in contracts.options.unknown_values(owner))
    for enum in contracts.enums:
        for value in enum.values:
            for text in contracts.options.unknown_values(value):
                yield ContractError(enum, text, value.name)


def _in_oneofs(message: Descriptor) -> Iterator[ContractError]:
    """Yield an error for each field of which `is_optional` returns the wrong result.

    Compilers call the oneof of `optional string name` `_name`, if no field or oneof has that name.
    """
    declared = DescriptorProto()
    message.CopyToProto(declared)
    for each in declared.field:
        field = message.fields_by_name[each.name]
        if is_optional(field) != each.proto3_optional:
            text = f"no other field or oneof of the message may be named _{field.name}"
            yield ContractError(field, text)


def _in_imports(contracts: Contracts) -> Iterator[ContractError]:
    """Yield an error for each field whose type is not proto3, or contains such a type."""
    for message in contracts.messages:
        for field in message.fields:
            kind = value_of(field).message_type or value_of(field).enum_type
            if kind is not None and kind.full_name in contracts.imported:
                yield from _in_import(contracts, field, kind)


def _in_import(
    contracts: Contracts,
    where: FieldDescriptor | MethodDescriptor,
    kind: Descriptor | EnumDescriptor,
) -> Iterator[ContractError]:
    parts = reachable([kind]).values() if isinstance(kind, Descriptor) else [kind]
    for each in parts:
        if each.full_name in contracts.imported and contracts.syntax(each.file) != "proto3":
            text = f"{each.full_name} is not proto3: use a message of your own"
            yield ContractError(where, text)


def _in_types(contracts: Contracts, method: MethodDescriptor) -> Iterator[ContractError]:
    for kind in (method.input_type, method.output_type):
        if kind.full_name in contracts.imported:
            yield from _in_import(contracts, method, kind)
        known = kind.full_name.startswith("google.protobuf.")
        if known and kind.full_name != "google.protobuf.Empty":
            yield ContractError(method, f"wrap {kind.full_name} in a message of your own")
    if method.client_streaming:
        yield ContractError(method, "a stream of requests is not supported: only of responses")
