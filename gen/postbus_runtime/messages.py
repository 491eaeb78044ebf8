"""The base class of the generated messages: exact bytes and JSON, fast constructors and attributes.

The bytes are read and written by the codec: betterproto accepts truncated bytes, and cuts times to
microseconds. The JSON is ProtoJSON; betterproto's lacks the prefixes of enum values, for example.

The constructor that betterproto inherits from dataclasses iterates over all fields twice, and is
several times slower. betterproto also looks up the oneof of a field at every access; only an unset
field needs that.
"""

from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from functools import cache
from importlib import import_module
from typing import Any, Self

import betterproto
from betterproto import PLACEHOLDER, Casing
from betterproto.utils import hybridmethod
from google.protobuf import json_format

from postbus_runtime.conversions import Codec

__all__ = ["GeneratedMessage"]

_get_attribute = object.__getattribute__


class GeneratedMessage(betterproto.Message):
    """A message of betterproto with a constructor that is compiled at the first call."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__post_init__" not in cls.__dict__:  # betterproto's, which warns of deprecated fields
            _set_constructor(cls, _construct_first)

    def __getattribute__(self, name: str) -> Any:
        value = _get_attribute(self, name)
        if value is PLACEHOLDER:
            return betterproto.Message.__getattribute__(self, name)
        return value

    def __bytes__(self) -> bytes:
        data: bytes = self._to_google().SerializeToString()
        return data

    def parse(self, data: bytes) -> Self:
        """Replace the fields by those in `data`, and return the message.

        Raises google's DecodeError if `data` is malformed, ValueError or OverflowError for a time
        that datetime or timedelta cannot represent exactly.
        """
        return self._replace(_codec_of(type(self)).upb.FromString(data))

    def to_dict(
        self, casing: Any = Casing.CAMEL, include_default_values: bool = False
    ) -> dict[str, Any]:
        """Return the message as ProtoJSON, which the API accepts.

        `Casing.SNAKE` writes the names of the .proto file, any other casing lowerCamelCase.
        """
        message = self._to_google()
        return json_format.MessageToDict(
            message,
            always_print_fields_with_no_presence=include_default_values,
            preserving_proto_field_name=casing is Casing.SNAKE,
            descriptor_pool=message.DESCRIPTOR.file.pool,
        )

    @hybridmethod  # as in betterproto: of the class and of an object
    def from_dict(cls, value: Mapping[str, Any]) -> Self:  # noqa: N805  # the class
        """Return the message in a ProtoJSON document; google's ParseError if it is refused."""
        return cls().from_dict(value)

    @from_dict.instancemethod  # type: ignore[no-redef]  # the second form of the same name
    def from_dict(self, value: Mapping[str, Any]) -> Self:
        message = _codec_of(type(self)).upb()
        pool = message.DESCRIPTOR.file.pool
        return self._replace(json_format.ParseDict(dict(value), message, descriptor_pool=pool))

    def _to_google(self) -> Any:
        codec = _codec_of(type(self))
        message = codec.upb()
        codec.write(self, message)
        return message

    def _replace(self, message: Any) -> Self:
        found = _codec_of(type(self)).read(message)
        object.__setattr__(self, "__dict__", found.__dict__)
        return self


@cache
def _codec_of(kind: type[betterproto.Message]) -> Codec:
    package = kind.__module__.partition(".")[0]
    found: Codec = import_module(f"{package}.codec").CODECS[kind]
    return found


def _set_constructor(message: type[betterproto.Message], constructor: Callable[..., None]) -> None:
    type.__setattr__(message, "__init__", constructor)


def _construct_first(message: betterproto.Message, /, *args: Any, **values: Any) -> None:
    """Construct the first message of a class, and replace its constructor."""
    kind = type(message)
    constructor = _compiled_constructor(kind)
    _set_constructor(kind, constructor)
    constructor(message, *args, **values)


def _compiled_constructor(message: type[betterproto.Message]) -> Callable[..., None]:
    """Return a constructor with the parameters and the effect of betterproto's."""
    found = fields(message)  # type: ignore[arg-type]  # every message class is a dataclass
    parameters = "".join(f", {field.name}={_default(field)}" for field in found)
    values = "".join(f'"{field.name}": {field.name}, ' for field in found)
    present = " or ".join(map(_is_present, found)) or "False"
    groups = ", ".join(f'"{group}": {_chosen(group, found)}' for group in _groups(found))
    source = (
        f"def __init__(__message__{parameters}):\n"
        f' __set_attribute__(__message__, "__dict__", {{{values}'
        f'"_serialized_on_wire": {present}, '
        f'"_unknown_fields": b"", "_group_current": {{{groups}}}}})'
    )
    names: dict[str, Any] = {
        "__set_attribute__": object.__setattr__,
        "__unset__": PLACEHOLDER,
    }
    exec(compile(source, f"<constructor of {message.__name__}>", "exec"), names)  # noqa: S102  # composed from the fields alone
    constructor: Callable[..., None] = names["__init__"]
    return constructor


def _default(field: "Field[Any]") -> str:
    return "None" if field.metadata["betterproto"].optional else "__unset__"


def _is_present(field: "Field[Any]") -> str:
    present = f"{field.name} is not __unset__"
    optional = field.metadata["betterproto"].optional
    return f"({present} and {field.name} is not None)" if optional else present


def _groups(found: "tuple[Field[Any], ...]") -> list[str]:
    groups = (field.metadata["betterproto"].group for field in found)
    return list(dict.fromkeys(group for group in groups if group))


def _chosen(group: str, found: "tuple[Field[Any], ...]") -> str:
    """Return the expression for the set member of a oneof: the last argument, as in betterproto."""
    members = [field.name for field in found if field.metadata["betterproto"].group == group]
    chosen = [f'"{name}" if {name} is not __unset__' for name in reversed(members)]
    return " else ".join([*chosen, "None"])
