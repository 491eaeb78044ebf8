"""The source of the codec's functions, from one template for each kind of field."""

from keyword import iskeyword

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from postbus_runtime.fields import (
    TIMES,
    WRAPPERS,
    choices,
    is_map,
    is_optional,
    message_of,
    value_of,
)
from postbus_runtime.names import field_name, plain_name, upb_field

__all__ = ["functions_of"]


def functions_of(message: Descriptor) -> str:
    """Return the source of `_read_NAME(m)` and `_write_NAME(o, m)` of a message."""
    plain = plain_name(message)
    return f"def _read_{plain}(m):\n{_reader(message)}def _write_{plain}(o, m):\n{_writer(message)}"


def _oneofs(message: Descriptor) -> dict[str, list[FieldDescriptor]]:
    return {oneof.name: list(oneof.fields) for oneof in choices(message)}


def _reader(message: Descriptor) -> str:
    oneofs = _oneofs(message)
    chosen = "".join(f'    in_{name} = m.WhichOneof("{name}")\n' for name in oneofs)
    values = "".join(f'            "{field_name(f)}": {_read(f)},\n' for f in message.fields)
    groups = ", ".join(f'"{name}": {_current(name, oneofs[name])}' for name in oneofs)
    if 'has("' in values:
        chosen += "    has = m.HasField\n"
    return (
        f"{chosen}    o = _new(_class_{plain_name(message)})\n"
        f'    _set_attribute(\n        o,\n        "__dict__",\n        {{\n{values}'
        '            "_serialized_on_wire": True,\n            "_unknown_fields": b"",\n'
        f'            "_group_current": {{{groups}}},\n        }},\n    )\n    return o\n'
    )


def _current(oneof: str, members: list[FieldDescriptor]) -> str:
    """Return the expression for the Python name of the member that is set."""
    renamed = {f.name: field_name(f) for f in members if f.name != field_name(f)}
    return f"{renamed!r}.get(in_{oneof}, in_{oneof})" if renamed else f"in_{oneof}"


def _read(field: FieldDescriptor) -> str:
    source = upb_field(field)
    if is_map(field):
        value = _read_value(value_of(field), "v")
        return f"dict({source})" if value == "v" else f"{{k: {value} for k, v in {source}.items()}}"
    if field.is_repeated:
        value = _read_value(field, "v")
        return f"list({source})" if value == "v" else f"[{value} for v in {source}]"
    value = _read_value(field, source)
    if is_optional(field):
        return f'{value} if has("{field.name}") else None'
    if field.containing_oneof:
        chosen = f'in_{field.containing_oneof.name} == "{field.name}"'
        return f"{value} if {chosen} else PLACEHOLDER"
    if field.message_type is None:
        return value
    known = field.message_type.full_name in TIMES or field.message_type.full_name in WRAPPERS
    unset = "None" if known else "PLACEHOLDER"
    return f'{value} if has("{field.name}") else {unset}'


def _read_value(field: FieldDescriptor, source: str) -> str:
    """Return the expression for one value; `source` itself if no conversion is needed."""
    if field.enum_type:
        return f"_{plain_name(field.enum_type)}[{source}]"
    if field.message_type is None:
        return source
    name = field.message_type.full_name
    if name in TIMES:
        return f"read_{TIMES[name]}({source})"
    if name in WRAPPERS:
        return f"{source}.value"
    return f"_read_{plain_name(field.message_type)}({source})"


def _writer(message: Descriptor) -> str:
    """Return the statements that write each field that is neither PLACEHOLDER nor None."""
    oneofs = _oneofs(message)
    lines = ["    d = _get_attribute(o, '__dict__')\n" if message.fields else "    pass\n"]
    for field in message.fields:
        if field.containing_oneof is None or is_optional(field):
            present = f'(v := d["{field_name(field)}"]) is not PLACEHOLDER and v is not None'
            lines += [f"    if {present}:\n", *(f"        {line}\n" for line in _write(field))]
    for name, members in oneofs.items():
        lines.append(f'    chosen = d["_group_current"]["{name}"]\n')
        for field in members:
            lines += [
                f'    if chosen == "{field_name(field)}":\n',
                f'        v = d["{field_name(field)}"]\n',
                *(f"        {line}\n" for line in _write(field)),
            ]
    return "".join(lines)


def _write(field: FieldDescriptor) -> list[str]:
    target = upb_field(field)
    if is_map(field):
        return _write_map(field, target)
    if field.message_type is None:
        if field.is_repeated:
            return [f"{target}.extend(v)"]
        keyword = iskeyword(field.name)
        return [f'setattr(m, "{field.name}", v)' if keyword else f"{target} = v"]
    if field.is_repeated:
        return ["for each in v:", f"    {_write_message(field, 'each', f'{target}.add()')}"]
    lines = [f"s = {target}", _write_message(field, "v", "s")]
    return lines + _presence(field)


def _write_map(field: FieldDescriptor, target: str) -> list[str]:
    value = value_of(field)
    if value.message_type is None:
        return [f"{target}.update(v)"]
    return ["for k, each in v.items():", f"    {_write_message(value, 'each', f'{target}[k]')}"]


def _write_message(field: FieldDescriptor, value: str, target: str) -> str:
    kind = message_of(field)
    if kind.full_name in WRAPPERS:
        return f"{target}.value = {value}"
    time = TIMES.get(kind.full_name)
    return f"{f'write_{time}' if time else f'_write_{plain_name(kind)}'}({value}, {target})"


def _presence(field: FieldDescriptor) -> list[str]:
    """Return the statement that marks an empty message as present, if it is one to betterproto."""
    kind = message_of(field)
    if kind.full_name in TIMES:
        return []  # write_time and write_duration mark them
    if kind.full_name in WRAPPERS or field.containing_oneof or not kind.fields:
        return ["s.SetInParent()"]
    return ['if _get_attribute(v, "_serialized_on_wire"):', "    s.SetInParent()"]
