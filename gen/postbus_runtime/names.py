"""Names and classes that betterproto generates for descriptors."""

from functools import cache
from importlib import import_module
from keyword import iskeyword
from typing import Any, Final

from betterproto.compile.naming import pythonize_class_name, pythonize_field_name
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

__all__ = ["class_of", "field_name", "plain_name", "upb_field"]

_GOOGLE: Final = "google.protobuf"


@cache
def class_of(kind: Descriptor | EnumDescriptor, root: str) -> Any:
    """Return betterproto's class; nested types have the names of their parents in front.

    The classes of third-party messages are in the package `root`.imported.
    """
    package: str = kind.file.package
    if package == _GOOGLE:
        module = import_module(f"betterproto.lib.{_GOOGLE}")
    elif package == root or package.startswith(f"{root}."):
        module = import_module(package)
    else:
        module = import_module(f"{root}.imported.{package}")
    nested = kind.full_name.removeprefix(f"{package}.")
    return getattr(module, pythonize_class_name("_" + nested.replace(".", "_")))


def field_name(field: FieldDescriptor) -> str:
    """Return the attribute of a field."""
    return str(pythonize_field_name(field.name))


def plain_name(kind: Descriptor | EnumDescriptor) -> str:
    """Return the full name as a part of an identifier."""
    return kind.full_name.replace(".", "_")


def upb_field(field: FieldDescriptor) -> str:
    """Return the expression for a field of the upb message `m`."""
    return f'getattr(m, "{field.name}")' if iskeyword(field.name) else f"m.{field.name}"
