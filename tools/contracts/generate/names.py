"""Names in OpenAPI and AsyncAPI documents: the shortest ones that are unique in the contract.

A message or an enum has its own name: `Post`. If several packages have this name, each has its
package in front: `PostsPost`. If earlier versions of the package have it, the package and the
version are in front: `PostsV2Post`. So a new version renames nothing of an older one. The same
holds for the tags of services. A third-party message has its whole package in front:
`GoogleTypeMoney`. A request body that is a part of the request message is `CreateCommentBody`,
after its operation. The operationId of a method is its name; it is preceded by the tag,
`PostsService_GetPost`, if methods of several services have this name, or those of several versions.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from itertools import chain
from typing import Final

from betterproto.casing import pascal_case, snake_case
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)

from postbus_runtime.fields import value_of
from postbus_runtime.http_rules import bindings
from postbus_runtime.options import Access
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.json_values import COMPONENTS
from tools.contracts.generate.qualified_names import (
    first_versions,
    qualified,
    short_name,
    with_whole_package,
)
from tools.contracts.generate.unique_names import Named, choose

__all__ = ["Names", "body_component", "enums_of_fields", "reachable"]

_GOOGLE: Final = "google.protobuf"
_RESERVED: Final = ("Problem", *COMPONENTS)
"""Components that no message has."""
_SUFFIXES: Final = ("Input", "Request", "Sent")
"""The schema in requests of a message that is also part of responses has the first of these that no
other message of the package has behind its name."""


class Names:
    """The names of a contract. Raises ContractError if two are equal in spite of the rules."""

    def __init__(self, contracts: Contracts) -> None:
        services = {each.containing_service.full_name: each for each in contracts.methods}
        owners = [each.containing_service for each in services.values()]
        first = first_versions(owners)
        self._tags = choose("tag", pascal_case, [qualified(each, first) for each in owners])
        self._operations = choose("operationId", snake_case, self._of_methods(contracts))
        operations = chain.from_iterable(self._operations.values())
        reserved = [*_RESERVED, *map(body_component, operations)]
        self._components = choose("component", pascal_case, _schemas(contracts), reserved)

    def component(self, message: Descriptor, *, request: bool) -> str:
        """Return the component of a message as part of a request or a response.

        A message that is part of both has two. KeyError for a message of another contract.
        """
        names = self.components(message)
        return names[-1] if request else names[0]

    def enum(self, enum: EnumDescriptor) -> str:
        """Return the component of an enum that a field has."""
        return self._components[enum.full_name][0]

    def tag(self, service: ServiceDescriptor) -> str:
        """Return the tag of a service."""
        return self._tags[service.full_name][0]

    def operation_id(self, method: MethodDescriptor, index: int) -> str:
        """Return the operationId of a binding; `index` is its number, 0 for the main one."""
        return self._operations[method.full_name][index]

    def components(self, message: Descriptor) -> tuple[str, ...]:
        """Return the components of a message: one, or that of responses and that of requests."""
        return self._components[message.full_name]

    def _of_methods(self, contracts: Contracts) -> list[Named]:
        """Return the candidates of the methods that clients may call over REST."""
        rules = bindings(contracts)
        public = [
            method
            for method in contracts.methods
            if contracts.method_options[method.full_name].access is not Access.INTERNAL
        ]
        first = first_versions(public)
        return [
            Named(
                owner=method,
                candidates=[
                    tuple(_numbered(name, index) for index in range(len(rules[method.full_name])))
                    for name in (
                        *([method.name] if method.full_name in first else []),
                        f"{self.tag(method.containing_service)}_{method.name}",
                    )
                ],
            )
            for method in public
        ]


def body_component(operation: str) -> str:
    """Return the component of a request body that is a part of the request message."""
    return f"{operation}Body"


def enums_of_fields(contracts: Contracts) -> list[EnumDescriptor]:
    """Return the enums that fields have, by full name."""
    messages = (*contracts.messages, *contracts.imported_messages)
    enums = {value_of(field).enum_type for message in messages for field in message.fields}
    found = [each for each in enums if each is not None and each.file.package != _GOOGLE]
    return sorted(found, key=lambda enum: enum.full_name)


def _schemas(contracts: Contracts) -> list[Named]:
    """Return the candidates of messages and enums."""
    both = _in_both(contracts)
    found = _messages(contracts.messages, both, qualified)
    found += _messages(contracts.imported_messages, both, with_whole_package)
    enums = enums_of_fields(contracts)
    first = first_versions(enums)
    return found + [
        (with_whole_package if each.full_name in contracts.imported else qualified)(each, first)
        for each in enums
    ]


def _in_both(contracts: Contracts) -> set[str]:
    """Return the full names of the messages that are part of requests and of responses."""
    events = (each for each in contracts.messages if each.full_name in contracts.event_options)
    received = reachable(chain((method.output_type for method in contracts.methods), events))
    frames = (each for each in contracts.messages if each.full_name not in received)
    sent = reachable(chain(frames, (method.input_type for method in contracts.methods)))
    return received.keys() & sent.keys()


def reachable(messages: Iterable[Descriptor]) -> dict[str, Descriptor]:
    """Return the messages and the types of their fields, recursively, by full name."""
    found: dict[str, Descriptor] = {}
    waiting = list(messages)
    while waiting:
        message = waiting.pop()
        if message.full_name not in found:
            found[message.full_name] = message
            waiting += [each.message_type for each in message.fields if each.message_type]
    return found


def _numbered(name: str, index: int) -> str:
    return f"{name}_{index}" if index else name


def _messages(
    messages: Sequence[Descriptor], both: Set[str], name: Callable[[Descriptor, Set[str]], Named]
) -> list[Named]:
    """Return the candidates of messages; a message in `both` has two names."""
    first = first_versions(messages)
    taken = {(each.file.package, pascal_case(short_name(each))) for each in messages}
    found = []
    for message in messages:
        named = name(message, first)
        if message.full_name in both:
            short, package = short_name(message), message.file.package
            free = (each for each in _SUFFIXES if (package, pascal_case(short + each)) not in taken)
            suffix = next(free, _SUFFIXES[-1])
            pairs = [(name, name + suffix) for (name,) in named.candidates]
            named = Named(owner=message, candidates=pairs)
        found.append(named)
    return found
