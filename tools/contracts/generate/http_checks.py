"""Checks of the HTTP bindings of methods (google/api/http.proto): each can be served as written."""

import re
from collections.abc import Iterator
from typing import Final

from google.protobuf.descriptor import MethodDescriptor

from postbus_runtime.contract import ContractError
from postbus_runtime.http_rules import Binding
from postbus_runtime.options import Access
from tools.contracts.generate.descriptors import Contracts

__all__ = ["OWN_FOLDERS", "OWN_PATHS", "binding_errors", "http_errors"]

OWN_PATHS: Final = (
    *("/", "/contracts", "/docs", "/openapi.json", "/asyncapi.json", "/ws"),
    *("/healthz", "/readyz", "/metrics", "/.well-known/security.txt"),
)
"""Paths that the gateway serves itself."""
OWN_FOLDERS: Final = ("/contracts/", "/docs/", "/problems/")
"""Beginnings of further paths that the gateway serves itself."""
_STATUSES: Final = (200, 201, 202, 203, 204)
"""Statuses of success for a response of any content (RFC 9110, section 15.3)."""
_NO_CONTENT: Final = 204
_VARIABLE: Final = re.compile(r"\\\{[^}]*\}")
"""A variable of an escaped path."""


def http_errors(contracts: Contracts, method: MethodDescriptor) -> Iterator[ContractError]:
    """Yield an error for each HTTP option of a method that is invalid or has no effect."""
    options = contracts.method_options[method.full_name]
    rule = contracts.options.foreign(method, "google.api.http")
    written = rule is not None and bool(rule.ListFields())
    if written and not rule.WhichOneof("pattern"):
        yield ContractError(method, "google.api.http has no verb and path: add them or remove it")
    for each in (rule, *rule.additional_bindings) if written else ():
        if each.selector:
            yield ContractError(method, "selector of google.api.http has no effect: remove it")
    for each in rule.additional_bindings if written else ():
        if not each.WhichOneof("pattern"):
            yield ContractError(method, "an additional binding has no verb and path")
        if each.additional_bindings:
            yield ContractError(method, "additional_bindings must not contain further ones")
    if written and options.access is Access.INTERNAL:
        text = "google.api.http has no effect with ACCESS_INTERNAL: remove it"
        yield ContractError(method, text)
    if options.http_status:
        yield from _status_errors(method, options.http_status, written=written)


def _status_errors(
    method: MethodDescriptor, status: int, *, written: bool
) -> Iterator[ContractError]:
    if not written:
        yield ContractError(method, "http_status has no effect without google.api.http: remove it")
    if status not in _STATUSES:
        text = f"http_status must be one of {', '.join(map(str, _STATUSES))}: {status}"
        yield ContractError(method, text)
    if status == _NO_CONTENT and method.output_type.fields:
        yield ContractError(method, "http_status 204 needs a response without fields")
    if status == _NO_CONTENT and method.server_streaming:
        yield ContractError(method, "http_status 204 excludes a stream of responses")


def binding_errors(
    contracts: Contracts, method: MethodDescriptor, found: list[Binding]
) -> Iterator[ContractError]:
    """Yield an error for each binding that matches a path of the gateway, or of Connect."""
    connect = [f"/{each.containing_service.full_name}/{each.name}" for each in contracts.methods]
    for binding in found:
        matches = re.compile(_VARIABLE.sub("[^/]+", re.escape(binding.path))).fullmatch
        taken = [path for path in (*OWN_PATHS, *connect) if matches(path)]
        taken += [each for each in OWN_FOLDERS if binding.path.startswith(each)]
        if taken:
            text = f"the path {binding.path!r} matches {taken[0]}, which the gateway serves itself"
            yield ContractError(method, text)
        for path, _ in binding.variables:
            if path[0].json_name == binding.body and len(path) == 1:
                yield ContractError(method, f"both path and body set {binding.body}")
