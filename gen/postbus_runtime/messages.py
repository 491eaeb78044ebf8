"""The base class of the generated messages, with fast constructors and attribute access.

The constructor that betterproto inherits from dataclasses iterates over all fields twice, and is
several times slower. betterproto also looks up the oneof of a field at every access; only an unset
field needs that.
"""

from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any

import betterproto
from betterproto import PLACEHOLDER

__all__ = ["GeneratedMessage"]

_get_attribute = object.__getattribute__


class GeneratedMessage(betterproto.Message):
    """A message of betterproto whose constructor is compiled at its first call."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__post_init__" not in cls.__dict__:  # betterproto's, which warns of deprecated fields
            _set_constructor(cls, _construct_first)

    def __getattribute__(self, name: str) -> Any:
        value = _get_attribute(self, name)
        if value is PLACEHOLDER:
            return betterproto.Message.__getattribute__(self, name)
        return value


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
