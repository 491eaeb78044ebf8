"""The contract as the generator reads it: with comments, source positions and validation rules."""

import re
import sys
from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Any, Final

from google.protobuf.descriptor import (
    EnumDescriptor,
    FieldDescriptor,
    FileDescriptor,
    MethodDescriptor,
)
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from postbus_runtime.contract import Contract, ContractError

__all__ = ["Contracts"]

_PACKAGE: Final = [FileDescriptorProto.PACKAGE_FIELD_NUMBER]
"""The path of the package's declaration in source info."""
_QUOTED: Final = re.compile(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`")


class Contracts(Contract):
    """A contract from a descriptor set with source info.

    Raises SystemExit with the file if google's library refuses it although the compilers accept it.
    """

    def __init__(self, descriptor_set: bytes, root: str = "postbus") -> None:
        try:
            super().__init__(descriptor_set, root)
        except TypeError as error:
            sys.exit(f"gen: {self._refused(str(error))}")

    @cached_property
    def file_names(self) -> list[str]:
        """The names of all files, imports included, each after the files that it imports."""
        return [file.name for file in self._files]

    @property
    def own_protos(self) -> list[FileDescriptorProto]:
        """The contract's own files with comments, each after the files that it imports."""
        return [file for file in self._files if file.name.startswith(f"{self.root}/")]

    def protos_below(self, roots: Collection[str]) -> list[FileDescriptorProto]:
        """The files of other package roots with comments, in the same order."""
        folders = tuple(f"{root}/" for root in roots)
        return [file for file in self._files if folders and file.name.startswith(folders)]

    @property
    def google_protos(self) -> list[FileDescriptorProto]:
        """The imported files of package google.protobuf."""
        return [file for file in self._files if file.package == "google.protobuf"]

    @cached_property
    def enums(self) -> list[EnumDescriptor]:
        """The contract's own enums, nested ones included."""
        owners: list[Any] = [*self.files, *self.messages]
        return [enum for owner in owners for enum in owner.enum_types_by_name.values()]

    def syntax(self, file: FileDescriptor) -> str:
        """Return the syntax of a file: `proto3` or `editions`; empty for proto2."""
        return next(each.syntax for each in self._files if each.name == file.name)

    def rules(self, field: FieldDescriptor) -> Any:
        """Return the buf.validate rules of a field."""
        return self.options.foreign(field, "buf.validate.field")

    def is_required(self, field: FieldDescriptor) -> bool:
        """Return whether google.api.field_behavior includes REQUIRED."""
        return "REQUIRED" in self.options.behaviors(field)

    def is_output_only(self, field: FieldDescriptor) -> bool:
        """Return whether google.api.field_behavior includes OUTPUT_ONLY."""
        return "OUTPUT_ONLY" in self.options.behaviors(field)

    def comment(self, full_name: str) -> str:
        """Return the leading comment of a message, field, method or service, as one text.

        Names of fields in backquotes get their JSON form: `next_page_token` becomes
        `nextPageToken`.
        """
        location = self._locations.get(full_name)
        return _QUOTED.sub(self._quoted, _text(location.leading_comments)) if location else ""

    def explain(self, error: ContractError) -> str:
        """Return an error with the file and line of the descriptor at fault."""
        where = error.where
        if isinstance(where, FileDescriptor):
            return f"proto/{where.name}{self._package_line(where)}: {error}"
        file = where.containing_service.file if isinstance(where, MethodDescriptor) else where.file
        return f"{self.position(where.full_name) or f'proto/{file.name}'}: {error}"

    def position(self, full_name: str) -> str:
        """Return `proto/FILE:LINE` of a descriptor; "" without source info."""
        location = self._locations.get(full_name)
        return f"proto/{self._file_of[full_name]}:{location.span[0] + 1}" if location else ""

    def _refused(self, error: str) -> str:
        """Return the error of the pool with file and line of the first field that it names."""
        reason = error.partition(": ")[2]
        name = re.search(r"\((\w+)\)", reason)
        fields = (each for each in self._file_of if name and each.endswith(f".{name[1]}"))
        return f"{self.position(next(fields, '')) or 'proto'}: {reason}"

    def _package_line(self, file: FileDescriptor) -> str:
        """Return `:LINE` of the package's declaration; "" without source info."""
        proto = next(each for each in self._files if each.name == file.name)
        found = [each for each in proto.source_code_info.location if list(each.path) == _PACKAGE]
        return f":{found[0].span[0] + 1}" if found else ""

    def _quoted(self, name: re.Match[str]) -> str:
        return f"`{self._json_names.get(name[1], name[1])}`"

    @cached_property
    def _json_names(self) -> dict[str, str]:
        return {field.name: field.json_name for each in self.messages for field in each.fields}

    @cached_property
    def _locations(self) -> dict[str, Any]:
        return {name: location for file in self._files for name, location in _locations(file)}

    @cached_property
    def _file_of(self) -> dict[str, str]:
        return {name: file.name for file in self._files for name, _ in _locations(file)}


def _locations(file: FileDescriptorProto) -> Iterator[tuple[str, Any]]:
    """Yield full names with their SourceCodeInfo.Location (descriptor.proto)."""
    for location in file.source_code_info.location:
        if name := _name_at(file, list(location.path)):
            yield name, location


def _name_at(file: FileDescriptorProto, path: list[int]) -> str:
    """Return the full name of the descriptor at a path; "" if the path leads to a part of one."""
    names, owner = [file.package], file
    while len(path) >= 2:  # field number and index
        field = owner.DESCRIPTOR.fields_by_number[path[0]]
        children = getattr(owner, field.name)
        if not field.is_repeated or not hasattr(children[path[1]], "name"):
            return ""
        owner = children[path[1]]
        names.append(owner.name)
        path = path[2:]
    return "" if path or len(names) == 1 else ".".join(names)


def _text(comment: str) -> str:
    """Return a comment with each paragraph on one line."""
    paragraphs = comment.strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
