"""What a descriptor set shows to those who rely on it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from tools.contracts.generate.descriptors import Contracts

__all__ = ["ACCESS", "Pair", "Route", "Surface"]

T = TypeVar("T")
U = TypeVar("U")

_METHOD = "postbus.options.v1.method"
_EVENT = "postbus.options.v1.event"
_INTERNAL = 3
ACCESS = ("UNSPECIFIED", "PUBLIC", "USER", "INTERNAL")
"""Names of postbus.options.v1.Access, each narrower than the one before."""
_PARAMETER = re.compile(r"\{([^}=]+)(?:=([^}]+))?\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One HTTP binding of a method."""

    verb: str
    path: str
    body: str
    response_body: str
    method: MethodDescriptor

    @property
    def url(self) -> str:
        """The path without the names of its parameters: `/v1/posts/*`."""
        return _PARAMETER.sub(lambda match: match[2] or "*", self.path)

    @property
    def template(self) -> str:
        """The path as the gateway has it: a parameter for each wildcard, whatever its name."""
        return self.url.replace("*", "{}")

    @property
    def parameters(self) -> list[str]:
        """The fields in the path, in its order."""
        return [match[1] for match in _PARAMETER.finditer(self.path)]

    def __str__(self) -> str:
        return f"{self.verb} {self.path}"

    def answers(self, url: str) -> bool:
        """Whether a request to this URL reaches the route, if no other comes first."""
        parts = {"**": ".+", "*": "[^/]+"}
        pattern = "".join(
            parts.get(part, re.escape(part)) for part in re.split(r"(\*\*?)", self.url)
        )
        return re.fullmatch(pattern, url) is not None


class Surface:
    """Methods, routes, events and places of one descriptor set.

    Raises DecodeError or TypeError if it is none, ValueError if it holds no contracts.
    """

    def __init__(self, descriptor_set: bytes) -> None:
        self._contracts = Contracts(descriptor_set)
        self._files = FileDescriptorSet.FromString(descriptor_set).file
        if not self._contracts.files:
            raise ValueError("no contracts below postbus/")

    @cached_property
    def methods(self) -> dict[str, MethodDescriptor]:
        """Every method, by full name: its routing key."""
        return {method.full_name: method for method in self._contracts.methods}

    @cached_property
    def messages(self) -> dict[str, Descriptor]:
        """Every message, by full name."""
        return {message.full_name: message for message in self._contracts.messages}

    @cached_property
    def events(self) -> dict[str, Descriptor]:
        """Every event, by full name: its routing key."""
        return {
            name: message
            for name, message in self.messages.items()
            if "subject" in self.options(message, _EVENT)
        }

    @cached_property
    def routes(self) -> dict[str, Route]:
        """Every HTTP binding, by verb and URL."""
        return {
            f"{route.verb} {route.url}": route
            for method in self.methods.values()
            for route in self._routes(method)
        }

    def is_internal(self, method: MethodDescriptor) -> bool:
        """Whether the gateway keeps a method from its clients."""
        return bool(self.options(method, _METHOD).get("access") == _INTERNAL)

    def event_access(self, event: Descriptor) -> int:
        """Return who hears of an event, as an index of ACCESS; unset it is INTERNAL."""
        return int(self.options(event, _EVENT).get("access", _INTERNAL))

    def is_heard_outside(self, event: Descriptor) -> bool:
        """Whether the gateway tells its clients of an event."""
        return self.event_access(event) != _INTERNAL

    def options(self, owner: Any, extension: str) -> dict[str, Any]:
        """Return the fields of an option that are set, by name; none if the set knows it not."""
        value = self.raw_option(owner, extension)
        return {} if value is None else {field.name: each for field, each in value.ListFields()}

    def raw_option(self, owner: Any, extension: str) -> Any:
        """Return an option as the set's own message; None if the set does not know it."""
        try:
            return self._contracts.option(owner, extension)
        except KeyError:  # nothing in the set imports its file
            return None

    def place(self, name: str) -> str:
        """Return `proto/FILE:LINE` of a name or of what holds it; "" if the set can't say."""
        while name and name not in self._places:
            name = name.rpartition(".")[0]
        return self._places.get(name, "")

    @cached_property
    def _places(self) -> dict[str, str]:
        return {name: place for file in self._files for name, place in _places(file)}

    def _routes(self, method: MethodDescriptor) -> Iterator[Route]:
        rule = self.raw_option(method, "google.api.http")
        for each in (rule, *rule.additional_bindings) if rule is not None else ():
            verb = each.WhichOneof("pattern")
            if verb:
                custom = verb == "custom"
                yield Route(
                    verb=each.custom.kind if custom else verb.upper(),
                    path=each.custom.path if custom else getattr(each, verb),
                    body=each.body,
                    response_body=each.response_body,
                    method=method,
                )


@dataclass(frozen=True, slots=True)
class Pair(Generic[T]):
    """The same thing in both descriptor sets."""

    old: Surface
    new: Surface
    before: T
    after: T

    def of(self, before: U, after: U) -> "Pair[U]":
        """Return a pair of other things in the same sets."""
        return Pair(self.old, self.new, before, after)

    def options(self, extension: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the fields of an option that are set, before and after."""
        return self.old.options(self.before, extension), self.new.options(self.after, extension)


def _places(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """Full names and places; paths are those of SourceCodeInfo in descriptor.proto."""
    for location in file.source_code_info.location:
        names, place, path = [file.package], file, list(location.path)
        while len(path) >= 2:  # field number and index
            field = place.DESCRIPTOR.fields_by_number[path[0]]
            children = getattr(place, field.name)
            if not field.is_repeated or not hasattr(children[path[1]], "name"):
                break
            place = children[path[1]]
            names.append(place.name)
            path = path[2:]
        if len(names) > 1 and not path:
            yield ".".join(names), f"proto/{file.name}:{location.span[0] + 1}"
