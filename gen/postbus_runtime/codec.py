"""Codecs of message classes: betterproto's objects in programs, google's parser (upb) on the wire.

Each message gets two functions, `read` from a upb message and `write` into one. Their source is
composed from one template for each kind of field and compiled once, at import: straight-line code
for each message is several times faster than a loop over its fields.
"""

import linecache
from collections.abc import Mapping
from typing import Any, Final

from betterproto import PLACEHOLDER
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from postbus_runtime.codec_source import functions_of
from postbus_runtime.contract import Contract
from postbus_runtime.conversions import (
    Codec,
    EnumMembers,
    read_duration,
    read_time,
    write_duration,
    write_time,
)
from postbus_runtime.fields import TIMES, WRAPPERS, value_of
from postbus_runtime.names import class_of, plain_name

__all__ = ["build_codecs"]

_GLOBALS: Final = {
    "PLACEHOLDER": PLACEHOLDER,
    "_new": object.__new__,
    "_set_attribute": object.__setattr__,
    "_get_attribute": object.__getattribute__,
    "read_duration": read_duration,
    "read_time": read_time,
    "write_duration": write_duration,
    "write_time": write_time,
}
"""The names that the composed functions use, beside those of their messages."""


def build_codecs(contract: Contract) -> Mapping[type, Codec]:
    """Return the codec of each message class that methods, events and their fields use."""
    messages = _with_imported(contract)
    classes = {message.full_name: class_of(message, contract.roots) for message in messages}
    names: dict[str, Any] = dict(_GLOBALS)
    names |= {f"_class_{plain_name(each)}": classes[each.full_name] for each in messages}
    names |= {
        f"_{plain_name(enum)}": EnumMembers(class_of(enum, contract.roots))
        for enum in _enums(messages)
    }
    source = "".join(functions_of(message) for message in messages)
    file = f"<codec of {contract.root}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file  # tracebacks
    exec(compile(source, file, "exec"), names)  # noqa: S102  # composed from descriptors alone
    return {
        classes[message.full_name]: Codec(
            GetMessageClass(message),
            names[f"_read_{plain_name(message)}"],
            names[f"_write_{plain_name(message)}"],
        )
        for message in messages
    }


def _with_imported(contract: Contract) -> list[Descriptor]:
    """Return the contract's own messages, and the imported ones that they or the methods use."""
    found: dict[str, Descriptor] = {}
    waiting = [*contract.messages]
    for method in contract.methods:
        waiting += [method.input_type, method.output_type]
    while waiting:
        message = waiting.pop()
        if message.full_name not in found and not message.GetOptions().map_entry:
            found[message.full_name] = message
        waiting += [
            kind
            for field in message.fields
            if (kind := _message_of(field)) and kind.full_name not in found
        ]
    return [found[name] for name in sorted(found)]


def _message_of(field: FieldDescriptor) -> Descriptor | None:
    kind = value_of(field).message_type
    converted = kind is None or kind.full_name in TIMES or kind.full_name in WRAPPERS
    return None if converted else kind


def _enums(messages: list[Descriptor]) -> list[EnumDescriptor]:
    used = [value_of(field).enum_type for message in messages for field in message.fields]
    enums = {enum.full_name: enum for enum in used if enum}
    return [enums[name] for name in sorted(enums)]
