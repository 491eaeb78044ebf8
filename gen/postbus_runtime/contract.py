"""A contract: the files, messages, methods and options of one descriptor set."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Self

from google.protobuf.descriptor import Descriptor, FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

from postbus_runtime.options import Access, EventOptions, MethodOptions, OptionReader

__all__ = ["Contract", "ContractError"]


class ContractError(Exception):
    """A contract that is not supported; `where` is the descriptor at fault.

    `value` is the name of the value at fault, if `where` is an enum.
    """

    def __init__(self, where: Any, reason: str, value: str = "") -> None:
        self.where = where
        self.name = "" if isinstance(where, FileDescriptor) else where.full_name
        if value:
            self.name += f".{value}"
        super().__init__(f"{self.name}: {reason}" if self.name else reason)


class Contract:
    """A descriptor set. The files below `root` are the contract's own, the rest are imports.

    `further` has other package roots whose files count as the contract's own too, with the access
    of their methods that state none. Raises DecodeError or TypeError if the bytes are not a
    complete descriptor set.
    """

    def __init__(
        self,
        descriptor_set: bytes,
        root: str = "postbus",
        further: Mapping[str, Access] = MappingProxyType({}),
    ) -> None:
        self.roots = (root, *further)
        self._further = further
        self.pool = DescriptorPool()
        """Every descriptor of the contract, imports included."""
        self._files = FileDescriptorSet.FromString(descriptor_set).file
        for file in self._files:
            self.pool.Add(file)
        self.options = OptionReader(self.pool)

    @property
    def root(self) -> str:
        """The package root of the contract itself."""
        return self.roots[0]

    @classmethod
    def of_package(cls, package: str, further: Mapping[str, Access] = MappingProxyType({})) -> Self:
        """Read `contracts.binpb` of a generated package."""
        return cls(files(package).joinpath("contracts.binpb").read_bytes(), package, further)

    @cached_property
    def files(self) -> list[FileDescriptor]:
        """The contract's own files, by name."""
        roots = tuple(f"{root}/" for root in self.roots)
        names = sorted(file.name for file in self._files if file.name.startswith(roots))
        return [self.pool.FindFileByName(name) for name in names]

    @cached_property
    def messages(self) -> list[Descriptor]:
        """The contract's own messages by full name, nested ones included, without map entries."""
        found = [
            message
            for file in self.files
            for top in file.message_types_by_name.values()
            for message in _with_nested(top)
        ]
        return sorted(found, key=lambda message: message.full_name)

    @cached_property
    def methods(self) -> list[MethodDescriptor]:
        """Every served rpc, in the order of the files."""
        return [each for each in self._all_methods if each not in self.unserved]

    @cached_property
    def unserved(self) -> list[MethodDescriptor]:
        """The methods of the further roots with a stream of requests: they have no route."""
        return [
            method
            for method in self._all_methods
            if method.client_streaming and _root(method) in self._further
        ]

    @cached_property
    def _all_methods(self) -> list[MethodDescriptor]:
        return [
            method
            for file in self.files
            for service in file.services_by_name.values()
            for method in service.methods
        ]

    @cached_property
    def method_options(self) -> Mapping[str, MethodOptions]:
        """The options of each method, by its full name."""
        return {method.full_name: self._options(method) for method in self.methods}

    def _options(self, method: MethodDescriptor) -> MethodOptions:
        options = self.options.method(method)
        default = self._further.get(_root(method))
        return options if options.access or not default else replace(options, access=default)

    @cached_property
    def event_options(self) -> Mapping[str, EventOptions]:
        """The options of each event, by its full name; messages that are no events are missing."""
        found = ((message.full_name, self.options.event(message)) for message in self.messages)
        return {name: options for name, options in found if options}


def _root(method: MethodDescriptor) -> str:
    return method.full_name.partition(".")[0]


def _with_nested(message: Descriptor) -> Iterator[Descriptor]:
    if not message.GetOptions().map_entry:
        yield message
        for nested in message.nested_types:
            yield from _with_nested(nested)
