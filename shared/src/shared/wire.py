"""Messages to bytes and back, and whether they keep the rules of the contract.

betterproto's classes are what programs see; google's parser (upb) reads and writes the bytes. It
is many times faster, and rejects what betterproto takes in silence: truncated and malformed bytes.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import betterproto
import protovalidate
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from postbus.checks import CHECKS
from postbus.codec import CODECS, POOL
from shared.errors import Code, FieldViolation, ServiceError

if TYPE_CHECKING:
    from protovalidate._gen.buf.validate.validate_pb import FieldPathElement, Violation

__all__ = [
    "decode",
    "encode",
    "from_upb",
    "invalid_fields",
    "message_class",
    "parse",
    "parse_as",
    "read_valid",
    "require_valid",
    "to_upb",
    "validate",
]

M = TypeVar("M", bound=betterproto.Message)
_broken_rules = protovalidate.Validator().collect_violations


@cache
def message_class(name: str) -> type[Message]:
    """Return google's class of the message with this full name; KeyError if there is none."""
    return GetMessageClass(POOL.FindMessageTypeByName(name))


def encode(message: betterproto.Message) -> bytes:
    """Return `message` in protobuf's binary format.

    As with betterproto, a time that is the epoch is not written; unknown fields are dropped.
    """
    data: bytes = to_upb(message).SerializeToString()
    return data


def to_upb(message: betterproto.Message) -> Any:
    """Return our `message` as google's."""
    codec = CODECS[type(message)]
    target = codec.upb()
    codec.write(message, target)
    return target


def decode(message_type: type[M], data: bytes) -> M:
    """Return the message in `data`; ServiceError INVALID_ARGUMENT if it is malformed."""
    return from_upb(message_type, parse_as(CODECS[message_type].upb, data))


def from_upb(message_type: type[M], message: Message) -> M:
    """Return google's `message` as ours; INVALID_ARGUMENT if it holds a time beyond year 9999."""
    try:
        converted: M = CODECS[message_type].read(message)
    except OverflowError:
        raise _malformed(message.DESCRIPTOR.full_name) from None
    return converted


def parse(name: str, data: bytes) -> Message:
    """Return google's message of this full name; INVALID_ARGUMENT if `data` is malformed."""
    return parse_as(message_class(name), data)


def parse_as(kind: type[Message], data: bytes) -> Message:
    """Return google's message of this class; INVALID_ARGUMENT if `data` is malformed."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise _malformed(kind.DESCRIPTOR.full_name) from None


def read_valid(message_type: type[M], data: bytes) -> M:
    """Return the message in `data`; INVALID_ARGUMENT if it is malformed or breaks a rule."""
    codec = CODECS[message_type]
    message = parse_as(codec.upb, data)
    require_valid(message)
    return from_upb(message_type, message)


def _malformed(name: str) -> ServiceError:
    return ServiceError(Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE", f"Not a valid {name}.")


def require_valid(message: Message) -> None:
    """Raise INVALID_ARGUMENT with every rule of the contract that `message` breaks."""
    check = CHECKS.get(type(message))
    if check is not None and check(message):  # a tenth of what protovalidate takes
        return
    violations = validate(message)
    if violations:
        raise invalid_fields(violations)


def invalid_fields(violations: Sequence[FieldViolation]) -> ServiceError:
    """The error of a request that breaks rules of the contract."""
    return ServiceError(
        Code.INVALID_ARGUMENT,
        "INVALID_FIELDS",
        "The request breaks the rules of the contract.",
        violations=violations,
    )


def validate(message: Message) -> list[FieldViolation]:
    """Return every rule of `buf.validate` that `message` breaks, in the order of the fields."""
    return [
        FieldViolation(
            field=_path(message.DESCRIPTOR, violation.proto),
            rule=violation.proto.rule_id,
            message=violation.proto.message,
        )
        for violation in _broken_rules(message)
    ]


def _path(message: Any, violation: "Violation") -> str:
    """Write a field path as proto3 JSON names it: `post.tags[2]`; empty for the whole message."""
    path = []
    for element in violation.field.elements if violation.field else []:
        field = message.fields_by_name.get(element.field_name)
        path.append((field.json_name if field else element.field_name) + _subscript(element))
        if field and field.message_type:
            kind = field.message_type
            message = (
                kind.fields_by_name["value"].message_type if kind.GetOptions().map_entry else kind
            )
    return ".".join(path)


def _subscript(element: "FieldPathElement") -> str:
    if element.subscript is None:
        return ""
    value = element.subscript.value
    return f'["{value}"]' if isinstance(value, str) else f"[{value}]"
