"""Checks of a contract: everything that some output cannot express is refused before generation."""

from collections.abc import Iterator

from google.protobuf.descriptor import MethodDescriptor

from postbus_runtime.contract import ContractError
from postbus_runtime.fields import value_of
from postbus_runtime.http_rules import bindings
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.http_checks import binding_errors, http_errors
from tools.contracts.generate.name_table import check_names
from tools.contracts.generate.option_checks import event_errors, method_errors
from tools.contracts.generate.reasons import reason_errors, reasons_of, unnamed_errors
from tools.contracts.generate.rule_checks import compile_rules

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
    for message in contracts.messages:
        if options := contracts.event_options.get(message.full_name):
            yield from event_errors(message, options)
    yield from _in_imports(contracts)
    yield from reason_errors(contracts)
    reasons = reasons_of(contracts)
    for method in contracts.methods:
        yield from _in_types(method)
        yield from method_errors(contracts, method)
        named = contracts.method_options[method.full_name].reasons
        yield from unnamed_errors(method, named, reasons)
        yield from http_errors(contracts, method)


def _in_imports(contracts: Contracts) -> Iterator[ContractError]:
    for message in contracts.messages:
        for field in message.fields:
            kind = value_of(field).message_type or value_of(field).enum_type
            if kind is None or kind.full_name not in contracts.imported:
                continue
            if contracts.syntax(kind.file) != "proto3":
                text = f"{kind.full_name} is not proto3: use a message of your own"
                yield ContractError(field, text)


def _in_types(method: MethodDescriptor) -> Iterator[ContractError]:
    for kind in (method.input_type, method.output_type):
        known = kind.full_name.startswith("google.protobuf.")
        if known and kind.full_name != "google.protobuf.Empty":
            yield ContractError(method, f"wrap {kind.full_name} in a message of your own")
    if method.client_streaming:
        yield ContractError(method, "a stream of requests is not supported: only of responses")
