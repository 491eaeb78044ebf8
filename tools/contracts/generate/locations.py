"""Where a created resource is found over REST: the header Location of a 201."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.http_rules import Binding
from tools.contracts.generate.options import method_access

__all__ = ["location"]

_CREATED: Final = 201


def location(
    contracts: Contracts,
    rules: Mapping[str, Sequence[Binding]],
    method: MethodDescriptor,
    binding: Binding,
) -> tuple[str, ...]:
    """Return the path of the collection that a created resource belongs to, and where its id is.

    The names of proto lead to the id in the response of `method`. Found from the GET that answers
    with the same message and has nothing but one of its strings in the path, as the last segment:
    below `binding`'s own path if there is one, else with the shortest path. Empty without one.
    """
    created = _resource(method, binding)
    if binding.status != _CREATED or created is None:
        return ()
    reads = sorted(
        _reads(contracts, rules, created),
        key=lambda each: (each[0] != binding.path, len(each[0]), each),
    )
    if not reads:
        return ()
    path, name = reads[0]
    return (path, binding.answer.name, name) if binding.answer else (path, name)


def _reads(
    contracts: Contracts, rules: Mapping[str, Sequence[Binding]], resource: Descriptor
) -> Iterator[tuple[str, str]]:
    for method in contracts.methods:
        if method.server_streaming or method_access(contracts, method) == "INTERNAL":
            continue
        for binding in rules[method.full_name]:
            if binding.verb == "GET" and _resource(method, binding) is resource:
                yield from _place(binding, resource)


def _resource(method: MethodDescriptor, binding: Binding) -> Descriptor | None:
    """Return the message that a binding answers with; None if it is a list or no message."""
    if binding.answer is None:
        return method.output_type
    return None if binding.answer.is_repeated else binding.answer.message_type


def _place(binding: Binding, resource: Descriptor) -> Iterator[tuple[str, str]]:
    """The collection's path and the resource's field with which a GET reads it, if it is one."""
    if len(binding.variables) != 1:
        return
    [(path, parameter)] = binding.variables
    collection, _, last = binding.path.rpartition("/")
    field = resource.fields_by_name.get(path[-1].name)
    if last != parameter or "{" in collection or field is None:
        return
    if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
        yield collection, field.name
