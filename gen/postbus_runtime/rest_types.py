"""Types of proto3 JSON that Pydantic lacks, for the generated models of requests."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from google.protobuf.duration_pb2 import Duration as _Duration
from google.protobuf.field_mask_pb2 import FieldMask as _FieldMask
from google.protobuf.timestamp_pb2 import Timestamp as _Timestamp
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Strict,
    StringConstraints,
    model_validator,
)

__all__ = [
    "Base64",
    "Double",
    "Duration",
    "FieldMask",
    "Float",
    "Integer",
    "Message",
    "Time",
    "WideInteger",
]

_FLOAT_END = 3.4028235677973366e38
"""The smallest number that rounds to infinity in 32 bits."""
_NOT_FINITE = {"NaN", "Infinity", "-Infinity"}


class Message(BaseModel):
    """A message in proto3 JSON, with JSON or proto names and at most one member of each oneof."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    __oneofs__: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The JSON names of the members of each oneof."""

    @model_validator(mode="before")
    @classmethod
    def _one_of_each(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        for name, members in cls.__oneofs__.items():
            given = [member for member in members if member in document]
            if len(given) > 1:
                raise ValueError(f"only one of {name} may be set: {' or '.join(given)}")
        return document


def _whole(value: Any) -> Any:
    """Return a float such as 1.0 or 1e3 as an integer, which it is in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _from_text(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.lstrip("-").isdecimal() else _whole(value)


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and value in _NOT_FINITE else value


def _single(value: float) -> float:
    if math.isfinite(value) and abs(value) >= _FLOAT_END:
        raise ValueError("too large for 32 bits")
    return value


def _read_by(kind: Any) -> Any:
    """Return a validator that uses google's parser, without its error texts."""

    def check(value: str) -> str:
        try:
            kind().FromJsonString(value)
        except Exception:  # noqa: BLE001  # it raises undocumented errors
            raise ValueError(f"not a valid {kind.DESCRIPTOR.name}") from None
        return value

    return AfterValidator(check)


Integer = Annotated[int, Strict(), BeforeValidator(_whole)]
"""32 bits."""
WideInteger = Annotated[int, Strict(), BeforeValidator(_from_text)]
"""64 bits: a number, or its digits as a string."""
Double = Annotated[float, Strict(), BeforeValidator(_number)]
Float = Annotated[Double, AfterValidator(_single)]
"""32 bits."""
Base64 = Annotated[
    str,
    StringConstraints(
        pattern=r"^(?:[A-Za-z0-9+/_-]{4})*(?:[A-Za-z0-9+/_-]{2}(?:==)?|[A-Za-z0-9+/_-]{3}=?)?$"
    ),
]
"""Of the standard or the URL alphabet, with or without padding."""
Time = Annotated[str, _read_by(_Timestamp)]
Duration = Annotated[str, _read_by(_Duration)]
FieldMask = Annotated[str, _read_by(_FieldMask)]
