"""Print a file descriptor as .proto text.

The protovalidate package has `buf/validate/validate.proto` only as a descriptor; clients and buf
need text. The descriptor has no comments, so the text has none either.
"""

from collections.abc import Iterator

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.message import Message
from google.protobuf.text_encoding import CEscape

__all__ = ["proto_text"]

_LABELS = {
    FieldDescriptorProto.LABEL_REPEATED: "repeated ",
    FieldDescriptorProto.LABEL_REQUIRED: "required ",
    FieldDescriptorProto.LABEL_OPTIONAL: "optional ",
}


def proto_text(file: FileDescriptorProto) -> str:
    """Return the .proto source of `file`, which has no services.

    Options that are extensions are printed only if their classes are loaded.
    """
    return "\n".join(_file(file)) + "\n"


def _file(file: FileDescriptorProto) -> Iterator[str]:
    proto2 = file.syntax != "proto3"
    yield f'syntax = "{file.syntax or "proto2"}";'
    yield f"package {file.package};"
    yield from (f'import "{name}";' for name in file.dependency)
    yield from (f"option {option};" for option in _options(file.options))
    for field in file.extension:
        yield f"extend {field.extendee} {{"
        yield f"  {_field(field, proto2)}"
        yield "}"
    for enum in file.enum_type:
        yield from _enum(enum)
    for message in file.message_type:
        yield from _message(message, proto2)


def _message(message: DescriptorProto, proto2: bool) -> Iterator[str]:
    yield f"message {message.name} {{"
    yield from (f"  option {option};" for option in _options(message.options))
    for nested in message.nested_type:
        if not nested.options.map_entry:
            yield from _indent(_message(nested, proto2))
    for enum in message.enum_type:
        yield from _indent(_enum(enum))
    yield from _fields(message, proto2)
    for extension in message.extension_range:
        yield f"  extensions {extension.start} to {_range_end(extension.end)};"
    yield from (f'  reserved "{name}";' for name in message.reserved_name)
    for span in message.reserved_range:
        yield f"  reserved {span.start} to {span.end - 1};"
    yield "}"


def _fields(message: DescriptorProto, proto2: bool) -> Iterator[str]:
    """Yield the fields in their order, and each oneof at the place of its first member."""
    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    printed: set[int] = set()
    for field in message.field:
        if not _in_oneof(field):
            entry = entries.get(field.type_name.rpartition(".")[2])
            yield f"  {_field(field, proto2, entry=entry)}"
        elif field.oneof_index not in printed:
            printed.add(field.oneof_index)
            yield from _oneof(message, field.oneof_index, proto2)


def _oneof(message: DescriptorProto, index: int, proto2: bool) -> Iterator[str]:
    oneof = message.oneof_decl[index]
    yield f"  oneof {oneof.name} {{"
    yield from (f"    option {option};" for option in _options(oneof.options))
    for field in message.field:
        if _in_oneof(field) and field.oneof_index == index:
            yield f"    {_field(field, proto2, label=False)}"
    yield "  }"


def _in_oneof(field: FieldDescriptorProto) -> bool:
    return field.HasField("oneof_index") and not field.proto3_optional


def _range_end(end: int) -> str:
    return "max" if end > 1 << 29 or end == 1 << 29 else str(end - 1)


def _field(
    field: FieldDescriptorProto,
    proto2: bool,
    *,
    label: bool = True,
    entry: DescriptorProto | None = None,
) -> str:
    prefix = ""
    if entry is None and label:
        keep = proto2 or field.proto3_optional or field.label == FieldDescriptorProto.LABEL_REPEATED
        prefix = _LABELS[field.label] if keep else ""
    kind = f"map<{_type(entry.field[0])}, {_type(entry.field[1])}>" if entry else _type(field)
    options = list(_options(field.options))
    if field.HasField("default_value"):
        options.append(f"default = {field.default_value}")
    suffix = f" [{', '.join(options)}]" if options else ""
    return f"{prefix}{kind} {field.name} = {field.number}{suffix};"


def _type(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return field.type_name
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _enum(enum: EnumDescriptorProto) -> Iterator[str]:
    yield f"enum {enum.name} {{"
    yield from (f"  option {option};" for option in _options(enum.options))
    for value in enum.value:
        options = list(_options(value.options))
        suffix = f" [{', '.join(options)}]" if options else ""
        yield f"  {value.name} = {value.number}{suffix};"
    yield from (f'  reserved "{name}";' for name in enum.reserved_name)
    for span in enum.reserved_range:  # inclusive, unlike the end of a message's range
        yield f"  reserved {span.start} to {span.end};"
    yield "}"


def _options(options: Message) -> Iterator[str]:
    for field, value in options.ListFields():
        name = f"(.{field.full_name})" if field.is_extension else field.name
        for item in value if field.is_repeated else [value]:
            yield f"{name} = {_option_value(field, item)}"


def _option_value(field: object, value: object) -> str:
    if isinstance(value, Message):
        return "{" + text_format.MessageToString(value, as_one_line=True) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{CEscape(value.encode(), as_utf8=True)}"'
    enum = getattr(field, "enum_type", None)
    return enum.values_by_number[value].name if enum else str(value)


def _indent(lines: Iterator[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)
