"""Names in generated Python, most of them betterproto's."""

from keyword import iskeyword

from betterproto.compile.naming import pythonize_class_name, pythonize_field_name
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

__all__ = ["field_name", "module_of", "plain_name", "python_class", "upb_field"]

_GOOGLE = "google.protobuf"


def module_of(kind: Descriptor | EnumDescriptor) -> str:
    """Return the module of a message's or an enum's class."""
    package: str = kind.file.package
    return f"betterproto.lib.{_GOOGLE}" if package == _GOOGLE else package


def python_class(kind: Descriptor | EnumDescriptor) -> str:
    """Return the class with its module; nested types carry their parents' names in front."""
    nested = kind.full_name.removeprefix(kind.file.package + ".")
    return f"{module_of(kind)}.{pythonize_class_name('_' + nested.replace('.', '_'))}"


def field_name(field: FieldDescriptor) -> str:
    """Return the attribute of a field."""
    return str(pythonize_field_name(field.name))


def plain_name(kind: Descriptor | EnumDescriptor) -> str:
    """Return the full name as part of a function's."""
    return kind.full_name.replace(".", "_")


def upb_field(field: FieldDescriptor) -> str:
    """Return the expression of a field of upb's message `m`."""
    return f'getattr(m, "{field.name}")' if iskeyword(field.name) else f"m.{field.name}"
