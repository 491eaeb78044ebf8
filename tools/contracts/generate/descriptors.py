"""The contract as the generator reads it: with comments, source positions and validation rules."""

import re
import sys
from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Any, Final

from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    FileDescriptor,
    MethodDescriptor,
)
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass

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
    def protos(self) -> list[FileDescriptorProto]:
        """All files with comments, imports included, each after the files that it imports."""
        return list(self._files)

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

    @cached_property
    def imported_messages(self) -> list[Descriptor]:
        """The third-party messages in messages and methods, by full name."""
        return [each for each in self.imported.values() if isinstance(each, Descriptor)]

    @cached_property
    def imported(self) -> dict[str, Descriptor | EnumDescriptor]:
        """The third-party messages and enums in messages and methods, by full name."""
        found: dict[str, Descriptor | EnumDescriptor] = {}
        waiting = [*self.messages]
        waiting += [kind for each in self.methods for kind in (each.input_type, each.output_type)]
        seen: set[str] = set()
        while waiting:
            message = waiting.pop()
            if message.full_name in seen:
                continue
            seen.add(message.full_name)
            used: list[Descriptor | EnumDescriptor] = [message]
            used += [field.enum_type for field in message.fields if field.enum_type]
            found |= {each.full_name: each for each in used if self._is_foreign(each)}
            waiting += [field.message_type for field in message.fields if field.message_type]
        return {name: found[name] for name in sorted(found)}

    def _is_foreign(self, kind: Descriptor | EnumDescriptor) -> bool:
        package = f"{kind.file.package}."
        own = package.startswith((f"{self.root}.", "google.protobuf."))
        return not own and not (isinstance(kind, Descriptor) and kind.GetOptions().map_entry)

    def rules(self, field: FieldDescriptor) -> Any:
        """Return the buf.validate rules of a field."""
        return self.options.foreign(field, "buf.validate.field")

    def is_required(self, field: FieldDescriptor) -> bool:
        """Return whether google.api.field_behavior includes REQUIRED."""
        return "REQUIRED" in self.options.behaviors(field)

    def is_output_only(self, field: FieldDescriptor) -> bool:
        """Return whether google.api.field_behavior includes OUTPUT_ONLY."""
        return "OUTPUT_ONLY" in self.options.behaviors(field)

    @cached_property
    def parsed_files(self) -> list[Any]:
        """Every file, imports included, as a message of the pool's class: options are parsed."""
        name = "google.protobuf.FileDescriptorProto"
        try:
            kind: Any = GetMessageClass(self.pool.FindMessageTypeByName(name))
        except KeyError:  # no file imports options
            return list(self._files)
        return [kind.FromString(file.SerializeToString()) for file in self._files]

    def option_at(self, file_name: str, line: int, column: int) -> Any:
        """Return the value of the option at a position, both from 0; None if there is none.

        An option in an array, such as one expression of `cel`, is an option of its own.
        """
        file = next((each for each in self.parsed_files if each.name == file_name), None)
        locations = file.source_code_info.location if file else ()
        at = [each for each in locations if list(each.span[:2]) == [line, column]]
        return _value_at(file, max((list(each.path) for each in at), key=len)) if at else None

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
        declared = _declared(where)
        name = error.name if declared is where else declared.full_name
        file = where.containing_service.file if isinstance(where, MethodDescriptor) else where.file
        return f"{self.position(name) or f'proto/{file.name}'}: {error}"

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


def _value_at(message: Any, path: list[int]) -> Any:
    """Return the value at a path of field numbers and indexes (descriptor.proto); None if none."""
    value = message
    while path:
        number, *path = path
        kind = value.DESCRIPTOR
        field = kind.fields_by_number.get(number)
        if field is not None:
            value = getattr(value, field.name)
        else:
            field = kind.file.pool.FindExtensionByNumber(kind, number)
            value = value.Extensions[field]
        if field.is_repeated and path:
            index, *path = path
            value = value[index]
    return value


def _declared(where: Any) -> Any:
    """Return the map field for a field of its entry, which stands in no source."""
    entry: Any = where.containing_type if isinstance(where, FieldDescriptor) else None
    if entry is None or not entry.GetOptions().map_entry:
        return where
    return next(each for each in entry.containing_type.fields if each.message_type is entry)


def _text(comment: str) -> str:
    """Return a comment with each paragraph on one line."""
    paragraphs = comment.strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
