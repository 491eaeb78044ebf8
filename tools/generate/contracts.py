"""The contracts as the generator sees them, read from a descriptor set."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
    FileDescriptor,
    MethodDescriptor,
)
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

__all__ = ["Contracts", "GeneratorError", "HttpBinding"]

_VERBS = ("get", "put", "post", "delete", "patch")


class GeneratorError(Exception):
    """The contract asks for something that can't be generated; says where and why."""

    def __init__(self, where: Any, why: str) -> None:
        file = where.containing_service.file if isinstance(where, MethodDescriptor) else where.file
        super().__init__(f"proto/{file.name}: {where.full_name}: {why}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpBinding:
    """One rule of google.api.http."""

    verb: str
    path: str
    body: str
    response_body: str


class Contracts:
    """Files, messages, methods, options and comments of proto/; our own are below `root`."""

    def __init__(self, descriptor_set: bytes, root: str = "postbus") -> None:
        self._root = root
        self._pool = DescriptorPool()
        self._files = FileDescriptorSet.FromString(descriptor_set).file
        for file in self._files:
            self._pool.Add(file)

    @cached_property
    def files(self) -> list[FileDescriptor]:
        """Our own files, by name."""
        names = sorted(file.name for file in self._files if file.name.startswith(f"{self._root}/"))
        return [self._pool.FindFileByName(name) for name in names]

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

    def http(self, method: MethodDescriptor) -> list[HttpBinding]:
        """Return the HTTP bindings of a method, the main one first."""
        rule = self.option(method, "google.api.http")
        return [
            _binding(method, each)
            for each in (rule, *rule.additional_bindings)
            if each.WhichOneof("pattern")
        ]

    def comment(self, full_name: str) -> str:
        """Return the leading comment of a message, field, method or service, as one text."""
        return self._comments.get(full_name, "")

    @cached_property
    def _comments(self) -> dict[str, str]:
        return {name: text for file in self._files for name, text in _comments(file)}


def _binding(method: MethodDescriptor, rule: Any) -> HttpBinding:
    verb = rule.WhichOneof("pattern")
    if verb not in _VERBS:
        raise GeneratorError(method, "custom HTTP verbs are not supported")
    path = getattr(rule, verb)
    if "=" in path or "*" in path:
        raise GeneratorError(method, f"path templates with patterns are not supported: {path}")
    return HttpBinding(
        verb=verb.upper(), path=path, body=rule.body, response_body=rule.response_body
    )


def _with_nested(message: Descriptor) -> Iterator[Descriptor]:
    if not message.GetOptions().map_entry:
        yield message
        for nested in message.nested_types:
            yield from _with_nested(nested)


def _comments(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """Full names and comments; paths are those of SourceCodeInfo in descriptor.proto."""
    for location in file.source_code_info.location:
        name = _name_at(file, list(location.path))
        if name and location.leading_comments:
            yield name, _text(location.leading_comments)


def _name_at(file: FileDescriptorProto, path: list[int]) -> str:
    names, place = [file.package], file
    while len(path) >= 2:  # field number and index
        field = place.DESCRIPTOR.fields_by_number[path[0]]
        if field.name not in {"message_type", "nested_type", "service", "method", "field"}:
            return ""
        place = getattr(place, field.name)[path[1]]
        names.append(place.name)
        path = path[2:]
    return "" if path else ".".join(names)


def _text(comment: str) -> str:
    """Join the lines of a paragraph; keep paragraphs apart."""
    paragraphs = comment.strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
