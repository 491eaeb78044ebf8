"""Names and classes that betterproto generates for descriptors."""

from functools import cache
from importlib import import_module
from keyword import iskeyword
from typing import Any, Final

from betterproto.compile.naming import (
    pythonize_class_name,
    pythonize_enum_member_name,
    pythonize_field_name,
    pythonize_method_name,
)
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)

__all__ = [
    "class_name",
    "class_of",
    "field_name",
    "member_name",
    "method_name",
    "plain_name",
    "service_class",
    "upb_field",
]

_GOOGLE: Final = "google.protobuf"


@cache
def class_of(kind: Descriptor | EnumDescriptor, roots: tuple[str, ...]) -> Any:
    """Return betterproto's class; nested types have the names of their parents in front.

    The classes of messages outside the package roots `roots` are in the first root's `imported`.
    """
    package: str = kind.file.package
    if package == _GOOGLE:
        module = import_module(f"betterproto.lib.{_GOOGLE}")
    elif package.partition(".")[0] in roots:
        module = import_module(package)
    else:
        module = import_module(f"{roots[0]}.imported.{package}")
    return getattr(module, class_name(kind))


def class_name(kind: Descriptor | EnumDescriptor) -> str:
    """Return the name of the class of a message or enum."""
    return str(pythonize_class_name(_flat(kind)))


def member_name(enum: EnumDescriptor, value: str) -> str:
    """Return the member of a value of an enum: without the enum's name."""
    return str(pythonize_enum_member_name(value, _flat(enum)))


def service_class(service: ServiceDescriptor) -> str:
    """Return the name of a service's classes, which end with `Stub` and `Base`."""
    return str(pythonize_class_name(service.name))


def method_name(method: MethodDescriptor) -> str:
    """Return the name of a method in its service's classes."""
    return str(pythonize_method_name(method.name))


def _flat(kind: Descriptor | EnumDescriptor) -> str:
    """Return the name below the package, as betterproto's compiler sees it."""
    return "_" + kind.full_name.removeprefix(f"{kind.file.package}.").replace(".", "_")


def field_name(field: FieldDescriptor) -> str:
    """Return the attribute of a field."""
    return str(pythonize_field_name(field.name))


def plain_name(kind: Descriptor | EnumDescriptor) -> str:
    """Return the full name as a part of an identifier."""
    return kind.full_name.replace(".", "_")


def upb_field(field: FieldDescriptor) -> str:
    """Return the expression for a field of the upb message `m`."""
    return f'getattr(m, "{field.name}")' if iskeyword(field.name) else f"m.{field.name}"
