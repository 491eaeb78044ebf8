"""Messages to bytes and back.

betterproto classes are what programs see. betterproto itself takes truncated and malformed bytes
in silence, so that google's parser (upb) reads everything first and rejects what is malformed.
"""

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, TypeVar

import betterproto
import protovalidate
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from postbus.registry import MESSAGES
from shared.errors import Code, FieldViolation, ServiceError

if TYPE_CHECKING:
    from protovalidate._gen.buf.validate.validate_pb import FieldPathElement, Violation

__all__ = ["decode", "encode", "message_class", "parse", "pool", "require_valid", "validate"]

M = TypeVar("M", bound=betterproto.Message)


@cache
def pool() -> DescriptorPool:
    """Return the pool with every descriptor of the contract, third-party imports included."""
    data = files("postbus").joinpath("contracts.binpb").read_bytes()
    contracts = DescriptorPool()
    for file in FileDescriptorSet.FromString(data).file:
        contracts.Add(file)
    return contracts


@cache
def message_class(name: str) -> type[Message]:
    """Return google's class of the message with this full name; KeyError if there is none."""
    return GetMessageClass(pool().FindMessageTypeByName(name))


@cache
def _name(message_type: type[betterproto.Message]) -> str:
    return next(name for name, known in MESSAGES.items() if known is message_type)


def encode(message: betterproto.Message) -> bytes:
    """Return `message` in protobuf's binary format."""
    return bytes(message)


def decode(message_type: type[M], data: bytes) -> M:
    """Return the message in `data`; ServiceError INVALID_ARGUMENT if it is malformed."""
    parse(_name(message_type), data)
    return message_type().parse(data)


def parse(name: str, data: bytes) -> Message:
    """Return google's message of this full name; INVALID_ARGUMENT if `data` is malformed."""
    try:
        return message_class(name).FromString(data)
    except DecodeError:
        raise ServiceError(
            Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE", f"Not a valid {name}."
        ) from None


def require_valid(message: Message) -> None:
    """Raise INVALID_ARGUMENT with every rule of the contract that `message` breaks."""
    violations = validate(message)
    if violations:
        raise ServiceError(
            Code.INVALID_ARGUMENT,
            "INVALID_FIELDS",
            "The request breaks the rules of the contract.",
            violations=violations,
        )


def validate(message: Message) -> list[FieldViolation]:
    """Return every rule of `buf.validate` that `message` breaks, in the order of the fields."""
    return [
        FieldViolation(
            field=_path(violation.proto),
            rule=violation.proto.rule_id,
            message=violation.proto.message,
        )
        for violation in protovalidate.collect_violations(message)
    ]


def _path(violation: "Violation") -> str:
    """Write a field path as proto3 JSON names it: `post.tags[2]`; empty for the whole message."""
    elements = violation.field.elements if violation.field else []
    return ".".join(_json_name(element.field_name) + _subscript(element) for element in elements)


def _json_name(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _subscript(element: "FieldPathElement") -> str:
    if element.subscript is None:
        return ""
    value = element.subscript.value
    return f'["{value}"]' if isinstance(value, str) else f"[{value}]"
