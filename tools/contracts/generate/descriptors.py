"""The contracts as the generator sees them, read from a descriptor set."""

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final

from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
    FileDescriptor,
    MethodDescriptor,
)
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

__all__ = ["Contracts", "GeneratorError"]

_NAMED = {"message_type", "nested_type", "service", "method", "field", "oneof_decl", "enum_type"}
_QUOTED: Final = re.compile(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`")


class GeneratorError(Exception):
    """The contract asks for something that can't be generated: `where`, a descriptor, and why."""

    def __init__(self, where: Any, why: str) -> None:
        super().__init__(why if isinstance(where, FileDescriptor) else f"{where.full_name}: {why}")
        self.where = where


class Contracts:
    """Files, messages, methods, options and comments of proto/; our own are below `root`."""

    def __init__(self, descriptor_set: bytes, root: str = "postbus") -> None:
        self.root = root
        self._pool = DescriptorPool()
        self._files = FileDescriptorSet.FromString(descriptor_set).file
        for file in self._files:
            self._pool.Add(file)

    @cached_property
    def file_names(self) -> list[str]:
        """All files, imports too: each after those that it imports."""
        return [file.name for file in self._files]

    @cached_property
    def files(self) -> list[FileDescriptor]:
        """Our own files, by name."""
        names = sorted(file.name for file in self._files if file.name.startswith(f"{self.root}/"))
        return [self._pool.FindFileByName(name) for name in names]

    def syntax(self, file: FileDescriptor) -> str:
        """Return what the file is written in: `proto3`, `editions`; proto2 is empty."""
        return next(each.syntax for each in self._files if each.name == file.name)

    @cached_property
    def messages(self) -> list[Descriptor]:
        """Our own messages, nested ones included but for the entries of maps, by full name."""
        found = [
            message
            for file in self.files
            for top in file.message_types_by_name.values()
            for message in _with_nested(top)
        ]
        return sorted(found, key=lambda message: message.full_name)

    @cached_property
    def methods(self) -> list[MethodDescriptor]:
        """Every rpc, in the order of the files."""
        return [
            method
            for file in self.files
            for service in file.services_by_name.values()
            for method in service.methods
        ]

    def option(self, owner: Any, extension: str) -> Any:
        """Return the value of an option, by the extension's full name; its default if unset."""
        kind = type(owner.GetOptions()).DESCRIPTOR.full_name
        # The pool's own class, not descriptor_pb2's: it knows the extensions of the pool.
        options: Any = GetMessageClass(self._pool.FindMessageTypeByName(kind)).FromString(
            owner.GetOptions().SerializeToString()
        )
        return options.Extensions[self._pool.FindExtensionByName(extension)]

    def rules(self, field: FieldDescriptor) -> Any:
        """Return the buf.validate rules of a field."""
        return self.option(field, "buf.validate.field")

    def is_required(self, field: FieldDescriptor) -> bool:
        """Whether google.api.field_behavior says REQUIRED."""
        required = 2
        return required in self.option(field, "google.api.field_behavior")

    def is_output_only(self, field: FieldDescriptor) -> bool:
        """Return whether google.api.field_behavior is OUTPUT_ONLY."""
        output_only = 3
        return output_only in self.option(field, "google.api.field_behavior")

    def is_event(self, message: Descriptor) -> bool:
        """Whether a message is an event."""
        return bool(self.option(message, "postbus.options.v1.event").subject)

    def comment(self, full_name: str) -> str:
        """Return the leading comment of a message, field, method or service, as one text.

        Names of fields in backquotes are written as JSON has them: `next_page_token` becomes
        `nextPageToken`.
        """
        location = self._locations.get(full_name)
        return _QUOTED.sub(self._quoted, _text(location.leading_comments)) if location else ""

    def _quoted(self, name: re.Match[str]) -> str:
        return f"`{self._json_names.get(name[1], name[1])}`"

    @cached_property
    def _json_names(self) -> dict[str, str]:
        return {field.name: field.json_name for each in self.messages for field in each.fields}

    def explain(self, error: GeneratorError) -> str:
        """Say file and line of what is at fault, and why."""
        where = error.where
        if isinstance(where, FileDescriptor):
            return f"proto/{where.name}: {error}"
        file = where.containing_service.file if isinstance(where, MethodDescriptor) else where.file
        location = self._locations.get(where.full_name)
        line = f":{location.span[0] + 1}" if location else ""
        return f"proto/{file.name}{line}: {error}"

    @cached_property
    def _locations(self) -> dict[str, Any]:
        return {name: place for file in self._files for name, place in _locations(file)}


def _with_nested(message: Descriptor) -> Iterator[Descriptor]:
    if not message.GetOptions().map_entry:
        yield message
        for nested in message.nested_types:
            yield from _with_nested(nested)


def _locations(file: FileDescriptorProto) -> Iterator[tuple[str, Any]]:
    """Full names and where they stand; paths are those of SourceCodeInfo in descriptor.proto."""
    for location in file.source_code_info.location:
        if name := _name_at(file, list(location.path)):
            yield name, location


def _name_at(file: FileDescriptorProto, path: list[int]) -> str:
    names, place = [file.package], file
    while len(path) >= 2:  # field number and index
        field = place.DESCRIPTOR.fields_by_number[path[0]]
        if field.name not in _NAMED:
            return ""
        place = getattr(place, field.name)[path[1]]
        names.append(place.name)
        path = path[2:]
    return "" if path else ".".join(names)


def _text(comment: str) -> str:
    """Join the lines of a paragraph; keep paragraphs apart."""
    paragraphs = comment.strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
