"""Names in OpenAPI and AsyncAPI documents: the shortest ones that are unique in the contract.

A message or an enum has its own name: `Post`. If several packages have this name, each has its
package in front: `PostsPost`. If earlier versions of the package have it, the package and the
version are in front: `PostsV2Post`. So a new version renames nothing of an older one. The same
holds for the tags of services. A third-party message has its whole package in front:
`GoogleTypeMoney`. A request body that is a part of the request message is `CreateCommentBody`,
after its operation. The operationId of a method is its name; it is preceded by the tag,
`PostsService_GetPost`, if methods of several services have this name, or those of several versions.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from betterproto.casing import pascal_case, snake_case
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)

from postbus_runtime.contract import ContractError
from postbus_runtime.fields import value_of
from postbus_runtime.http_rules import bindings
from postbus_runtime.options import Access
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.json_values import COMPONENTS

__all__ = ["Names", "body_component", "enums_of_fields", "reachable"]

_GOOGLE: Final = "google.protobuf"
_RESERVED: Final = ("Problem", *COMPONENTS)
"""Components that no message has."""
_SUFFIXES: Final = ("Input", "Request", "Sent")
"""The schema in requests of a message that is also part of responses has the first of these that no
other message of the package has behind its name."""
_VERSION: Final = re.compile(r"v([0-9]+)(?:p([0-9]+))?(?:(alpha|beta)([0-9]*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """A descriptor with its candidates, the shortest first; each is a set of names."""

    owner: Any
    candidates: Sequence[tuple[str, ...]]


class Names:
    """The names of a contract. Raises ContractError if two are equal in spite of the rules."""

    def __init__(self, contracts: Contracts) -> None:
        services = {each.containing_service.full_name: each for each in contracts.methods}
        owners = [each.containing_service for each in services.values()]
        first = _first_versions(owners)
        self._tags = _choose("tag", pascal_case, [_qualified(each, first) for each in owners])
        self._operations = _choose("operationId", snake_case, self._of_methods(contracts))
        operations = chain.from_iterable(self._operations.values())
        reserved = [*_RESERVED, *map(body_component, operations)]
        self._components = _choose("component", pascal_case, _schemas(contracts), reserved)

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

    def _of_methods(self, contracts: Contracts) -> list[_Named]:
        """Return the candidates of the methods that clients may call over REST."""
        rules = bindings(contracts)
        public = [
            method
            for method in contracts.methods
            if contracts.method_options[method.full_name].access is not Access.INTERNAL
        ]
        first = _first_versions(public)
        return [
            _Named(
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


def _schemas(contracts: Contracts) -> list[_Named]:
    """Return the candidates of messages and enums."""
    both = _in_both(contracts)
    found = _messages(contracts.messages, both, _qualified)
    found += _messages(contracts.imported_messages, both, _imported)
    enums = enums_of_fields(contracts)
    first = _first_versions(enums)
    return found + [
        (_imported if each.full_name in contracts.imported else _qualified)(each, first)
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
    messages: Sequence[Descriptor], both: Set[str], name: Callable[[Descriptor, Set[str]], _Named]
) -> list[_Named]:
    """Return the candidates of messages; those in `both` have two names."""
    first = _first_versions(messages)
    taken = {(each.file.package, pascal_case(_short(each))) for each in messages}
    found = []
    for message in messages:
        named = name(message, first)
        if message.full_name in both:
            short, package = _short(message), message.file.package
            free = (each for each in _SUFFIXES if (package, pascal_case(short + each)) not in taken)
            suffix = next(free, _SUFFIXES[-1])
            pairs = [(name, name + suffix) for (name,) in named.candidates]
            named = _Named(owner=message, candidates=pairs)
        found.append(named)
    return found


def _short(kind: Any) -> str:
    """Return the name of a message or service without its package and without dots."""
    return str(kind.full_name.removeprefix(f"{package_of(kind)}.").replace(".", ""))


def _qualified(kind: Any, first: Set[str]) -> _Named:
    """Return the candidates of a message or service: alone, or with package and version."""
    _, *parts = package_of(kind).split(".")
    version = [parts.pop()] if parts and _VERSION.fullmatch(parts[-1]) else []
    fronts = [[], parts[:1], parts, [*parts, *version]]
    if kind.full_name not in first:
        fronts = fronts[-1:]
    found = dict.fromkeys(pascal_case("_".join(front)) + _short(kind) for front in fronts)
    return _Named(owner=kind, candidates=[(each,) for each in found])


def _imported(kind: Any, _: Set[str]) -> _Named:
    """Return the candidate of a third-party message or enum, with its whole package."""
    name = "".join(part[:1].upper() + part[1:] for part in kind.full_name.split("."))
    return _Named(owner=kind, candidates=[(name,)])


def package_of(kind: Any) -> str:
    """Return the package of a message, service or method."""
    owner = kind.containing_service if isinstance(kind, MethodDescriptor) else kind
    return str(owner.file.package)


def _line(kind: Any) -> tuple[tuple[str, str], tuple[int, int, int, int]]:
    """Return the name without the version, as package and rest, and the sort key of the version."""
    package = package_of(kind)
    rest = kind.full_name.removeprefix(f"{package}.")
    *parts, last = package.split(".")
    found = _VERSION.fullmatch(last)
    if found is None:
        return (package, rest), (0, 0, 0, 0)
    major, point, stage, number = found.groups(default="0")
    stages = {"alpha": 1, "beta": 2, "0": 3}
    version = (int(major), int(point), stages[stage], int(number or 0))
    return (".".join(parts), rest), version


def _first_versions(kinds: Iterable[Any]) -> set[str]:
    """Return the full names of those that no earlier version of their package has."""
    first: dict[tuple[str, str], tuple[tuple[int, int, int, int], str]] = {}
    for kind in kinds:
        line, version = _line(kind)
        first[line] = min(first.get(line, (version, kind.full_name)), (version, kind.full_name))
    return {name for _, name in first.values()}


def _choose(
    output: str, fold: Callable[[str], str], named: Sequence[_Named], reserved: Iterable[str] = ()
) -> Mapping[str, tuple[str, ...]]:
    """Return the names of each owner by its full name, no two of them equal when folded."""
    levels = [0] * len(named)
    while clashes := _clashes(fold, named, levels, reserved):
        longer = [i for i in clashes if levels[i] + 1 < len(named[i].candidates)]
        if not longer:
            index, other = clashes.popitem()
            name = named[index].candidates[levels[index]][0]
            raise ContractError(
                named[index].owner, f"its {output} {name} is also that of {other}: rename one"
            )
        for index in longer:
            levels[index] += 1
    return {
        each.owner.full_name: each.candidates[level]
        for each, level in zip(named, levels, strict=True)
    }


def _clashes(
    fold: Callable[[str], str],
    named: Sequence[_Named],
    levels: Sequence[int],
    reserved: Iterable[str],
) -> dict[int, str]:
    """Return the indexes of those whose names others have too, with the name of one of them."""
    owners: dict[str, list[int]] = defaultdict(list)
    for index, each in enumerate(named):
        for name in set(map(fold, each.candidates[levels[index]])):
            owners[name.lower()].append(index)
    ours = {fold(name).lower() for name in reserved}
    found: dict[int, str] = {}
    for name, indexes in owners.items():
        if name in ours:
            found |= dict.fromkeys(indexes, "every document")
        elif len(indexes) > 1:
            first, *rest = indexes
            found[first] = named[rest[0]].owner.full_name
            found |= dict.fromkeys(rest, named[first].owner.full_name)
    return found
