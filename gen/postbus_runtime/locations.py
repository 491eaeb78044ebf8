"""The path of a created resource over REST: the header Location of a 201."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from postbus_runtime.contract import Contract
from postbus_runtime.http_rules import Binding
from postbus_runtime.options import Access

__all__ = ["location"]

_CREATED: Final = 201


def location(
    contract: Contract,
    rules: Mapping[str, Sequence[Binding]],
    method: MethodDescriptor,
    binding: Binding,
) -> tuple[str, ...]:
    """Return the path of a created resource's collection, and the path to its id in the response.

    The id has the proto names of the response of `method`. The collection is that of a GET that
    returns the same message and has one string field of it as the last path segment, and no other
    path parameter. A GET below the path of `binding` is preferred, then the shortest path. Empty if
    nothing is created, or no such GET exists.
    """
    created = _resource(method, binding)
    if binding.status != _CREATED or created is None:
        return ()
    reads = sorted(
        _reads(contract, rules, created),
        key=lambda each: (each[0] != binding.path, len(each[0]), each),
    )
    if not reads:
        return ()
    path, name = reads[0]
    return (path, binding.response_field.name, name) if binding.response_field else (path, name)


def _reads(
    contract: Contract, rules: Mapping[str, Sequence[Binding]], resource: Descriptor
) -> Iterator[tuple[str, str]]:
    for method in contract.methods:
        internal = contract.method_options[method.full_name].access is Access.INTERNAL
        if method.server_streaming or internal:
            continue
        for binding in rules[method.full_name]:
            if binding.verb == "GET" and _resource(method, binding) is resource:
                yield from _id_in_path(binding, resource)


def _resource(method: MethodDescriptor, binding: Binding) -> Descriptor | None:
    """Return the message in the response body; None if the body is a list or no message."""
    if binding.response_field is None:
        return method.output_type
    return None if binding.response_field.is_repeated else binding.response_field.message_type


def _id_in_path(binding: Binding, resource: Descriptor) -> Iterator[tuple[str, str]]:
    """Yield the path of the collection, and the id field of the resource, if a GET reads one."""
    if len(binding.variables) != 1:
        return
    [(path, parameter)] = binding.variables
    collection, _, last = binding.path.rpartition("/")
    field = resource.fields_by_name.get(path[-1].name)
    if last != parameter or "{" in collection or field is None:
        return
    if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
        yield collection, field.name
