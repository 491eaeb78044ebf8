"""Encode, decode and validate messages.

Handlers use betterproto's classes; google's parser (upb) reads and writes the bytes. It is many
times faster, and refuses truncated and malformed bytes, which betterproto accepts.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import betterproto
import protovalidate
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from postbus import reasons
from postbus.codec import CODECS, POOL
from postbus.described import DESCRIBED
from postbus_runtime.conversions import InexactTimeError
from shared.bounds import OverBoundError, count_elements
from shared.errors import MAX_VIOLATIONS, FieldViolation, ServiceError, shown_name
from shared.exact_times import find_inexact_times
from shared.field_limit import UNCOUNTED_BYTES, exceeds_field_limit

if TYPE_CHECKING:
    from protovalidate._gen.buf.validate.validate_pb import FieldPathElement, Violation

__all__ = [
    "decode",
    "encode",
    "find_violations",
    "invalid_fields",
    "message_class",
    "parse",
    "parse_as",
    "read_valid",
    "require_few_elements",
    "require_valid",
    "to_upb",
]

M = TypeVar("M", bound=betterproto.Message)
_collect_violations = protovalidate.Validator().collect_violations
_MANY_ELEMENTS: Final = 250
"""Elements of a message of which only the first violation is collected: each one costs 20 us."""
_RULE_ID: Final = re.compile(r"error evaluating (.{1,100}?): ", re.DOTALL)


@cache
def message_class(name: str) -> type[Message]:
    """Return upb's class of the message with this full name; KeyError if it is unknown."""
    return GetMessageClass(POOL.FindMessageTypeByName(name))


def encode(message: betterproto.Message) -> bytes:
    """Return `message` in protobuf's binary format; unknown fields are dropped."""
    codec = CODECS[type(message)]
    target = codec.upb()
    codec.write(message, target)
    data: bytes = target.SerializeToString()
    return data


def to_upb(message: betterproto.Message) -> Any:
    """Return betterproto's `message` as upb's."""
    codec = CODECS[type(message)]
    target = codec.upb()
    codec.write(message, target)
    return target


def decode(message_type: type[M], data: bytes) -> M:
    """Return the message in `data`.

    Raises INVALID_ARGUMENT: MALFORMED_MESSAGE if it is malformed, INVALID_FIELDS for a Timestamp or
    Duration that Python cannot represent exactly; see `shared.exact_times`.
    """
    codec = CODECS[message_type]
    message = parse_as(codec.upb, data)
    try:
        converted: M = codec.read(message)
    except (InexactTimeError, OverflowError):
        raise invalid_fields(find_inexact_times(message)) from None
    return converted


def parse(name: str, data: bytes) -> Message:
    """Return upb's message of this full name; INVALID_ARGUMENT if `data` is malformed."""
    return parse_as(message_class(name), data)


def parse_as(kind: type[Message], data: bytes, *, counted: bool = True) -> Message:
    """Return upb's message of this class; INVALID_ARGUMENT, MALFORMED_MESSAGE if `data` is
    malformed, or has more than 50,000 fields.

    Without `counted` any number of fields is accepted: for messages of clients, whose size is
    bounded and whose violations name the field.
    """
    if counted and len(data) > UNCOUNTED_BYTES and exceeds_field_limit(kind, data):
        raise _malformed(kind.DESCRIPTOR.full_name)
    try:
        return kind.FromString(data)
    except DecodeError:
        raise _malformed(kind.DESCRIPTOR.full_name) from None


def read_valid(message_type: type[M], data: bytes) -> M:
    """Return the message in `data`; raises like `decode`, and for a violation of a rule."""
    codec = CODECS[message_type]
    try:
        message = codec.upb.FromString(data)
        require_valid(message)
        valid: M = codec.read(message)
    except DecodeError:
        raise _malformed(codec.upb.DESCRIPTOR.full_name) from None
    except (InexactTimeError, OverflowError):
        raise invalid_fields(find_inexact_times(message)) from None
    return valid


def _malformed(name: str) -> ServiceError:
    return ServiceError(reasons.MALFORMED_MESSAGE, f"Not a valid {name}.")


def require_valid(message: Message) -> None:
    """Raise INVALID_ARGUMENT, INVALID_FIELDS if `message` violates rules of the contract.

    The numbers of elements are checked first, because they bound the time of the other rules. For a
    message of more than 250 elements only the first violation is reported.
    """
    violations, more = find_violations(message)
    if violations:
        raise invalid_fields(violations, more=more)


def require_few_elements(message: Message) -> None:
    """Raise INVALID_FIELDS if a list or map, or all of a message together, are too long."""
    try:
        count_elements(message)
    except OverBoundError as error:
        raise invalid_fields([_over_bound(error)], more=True) from None


def invalid_fields(violations: Sequence[FieldViolation], *, more: bool = False) -> ServiceError:
    """Return INVALID_ARGUMENT, INVALID_FIELDS with these violations."""
    return ServiceError(
        reasons.INVALID_FIELDS,
        "The request violates rules of the contract.",
        violations=violations,
        more_violations=more,
    )


def find_violations(message: Message) -> tuple[list[FieldViolation], bool]:
    """Return the violations of `message` in the order of the fields, 20 at most.

    The second value is true if there are, or may be, more.
    """
    try:
        elements = count_elements(message)
        found = _collect_violations(message, fail_fast=elements > _MANY_ELEMENTS)
    except OverBoundError as error:
        return [_over_bound(error)], True
    except protovalidate.EvaluationError as error:
        return [_not_evaluated(error)], True
    if not found:
        return [], False
    kept = [_violation(message.DESCRIPTOR, each.proto) for each in found[:MAX_VIOLATIONS]]
    return kept, len(found) > MAX_VIOLATIONS or elements > _MANY_ELEMENTS


def _violation(kind: Any, violation: "Violation") -> FieldViolation:
    path, field = _path(kind, violation)
    rule = violation.rule_id
    message = violation.message
    if rule.endswith(".pattern") and field is not None:  # not the regular expression
        message = f"must be as described: {DESCRIBED.get(field.full_name, field.name)}"
    return FieldViolation(field=path, rule=rule, message=_ascii(message))


def _ascii(message: str) -> str:
    return message.encode("ascii", "backslashreplace").decode()


def _over_bound(error: OverBoundError) -> FieldViolation:
    return FieldViolation(field=error.path, rule=error.rule, message=error.message)


def _not_evaluated(error: Exception) -> FieldViolation:
    """Return the violation of a rule that cannot be computed, such as a division by zero."""
    found = _RULE_ID.search(str(error))
    rule = found[1] if found else "evaluation"
    return FieldViolation(rule=rule, message="the rule cannot be applied to these values")


def _path(message: Any, violation: "Violation") -> tuple[str, Any]:
    """Return the JSON path of a violation, such as `post.tags[2]`, and its last field.

    For a violation of the whole message the path is empty and the field is None.
    """
    path, field = [], None
    for element in violation.field.elements if violation.field else []:
        field = message.fields_by_name.get(element.field_name)
        path.append((field.json_name if field else element.field_name) + _subscript(element))
        if field and field.message_type:
            kind = field.message_type
            message = (
                kind.fields_by_name["value"].message_type if kind.GetOptions().map_entry else kind
            )
    return ".".join(path), field


def _subscript(element: "FieldPathElement") -> str:
    if element.subscript is None:
        return ""
    value = element.subscript.value
    if isinstance(value, str):
        return f'["{shown_name(value)}"]'
    return f"[{str(value).lower()}]"
