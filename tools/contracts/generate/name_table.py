"""Every name that the generator makes, with the place in which it must be unique.

Names that the documents can qualify are in `names.py`. The others follow from the contract alone:
if two are equal, or one is not possible, the contract is refused before anything is written.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any, Final

from betterproto.casing import snake_case
from betterproto.compile.importing import parse_source_type_name
from betterproto.compile.naming import pythonize_class_name, pythonize_field_name
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    FileDescriptor,
    MethodDescriptor,
)
from google.protobuf.empty_pb2 import Empty

from postbus_runtime.contract import ContractError
from postbus_runtime.fields import is_map
from postbus_runtime.http_rules import bindings, json_path
from postbus_runtime.names import (
    class_name,
    field_name,
    member_name,
    method_name,
    plain_name,
    service_class,
)
from postbus_runtime.options import Access
from tools.contracts.generate.descriptors import Contracts
from tools.contracts.generate.names import Names, enums_of_fields

__all__ = ["GeneratedName", "check_names", "generated_names"]

_FOLDER: Final = "folder"
_SUBFOLDER: Final = "subfolder"
_CLASS: Final = "Python class"
_ATTRIBUTE: Final = "Python attribute"
_METHOD: Final = "Python method"
_ARGUMENT: Final = "Python argument"
_FIELD: Final = "attribute in google's classes"
_RESERVED: Final[Mapping[str, frozenset[str]]] = {
    _FOLDER: frozenset({"codec", "contract", "described", "reasons", "registry", "rest"}),
    _CLASS: frozenset(
        (
            *("AsyncIterable", "AsyncIterator", "Deadline", "DeprecationWarning", "Dict"),
            *("GeneratedMessage", "Iterable", "List", "MetadataLike", "Optional", "ServiceBase"),
            *("ServiceStub", "Union"),
        )
    ),
    _ATTRIBUTE: frozenset({"betterproto"}),
    _METHOD: frozenset({"channel", "timeout"}),
    _ARGUMENT: frozenset({"deadline", "metadata", "self", "timeout"}),
    _FIELD: frozenset(dir(Empty)),
}
"""Names that the generated code itself uses, by kind: modules, imports, parameters, attributes."""
_JSON_NAMES: Final = frozenset({"$ref", "__proto__", "hasOwnProperty"})
"""JSON names with a meaning of their own in JSON Schema or in JavaScript."""
_PYTHON: Final = (_FOLDER, _SUBFOLDER, _CLASS, _ATTRIBUTE, _METHOD)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedName:
    """A name of `kind`, unique in `place`. `source` has the name, and `owner` declares it."""

    kind: str
    place: str
    name: str
    owner: Any
    source: str


def check_names(contracts: Contracts) -> None:
    """Raise ContractError for the first name that is not unique, or that cannot be used."""
    for message in (*contracts.messages, *contracts.imported_messages):
        for field in message.fields:
            _require_json_name(field)
    taken: dict[tuple[str, str, str], GeneratedName] = {}
    for each in generated_names(contracts):
        if each.name in _RESERVED.get(each.kind, ()):
            reason = f"the generated code needs the {each.kind} {each.name}: choose another name"
            raise ContractError(each.owner, reason)
        if each.kind in _PYTHON and (iskeyword(each.name) or not each.name.isidentifier()):
            reason = f"its {each.kind} {each.name!r} is no name in Python: choose another name"
            raise ContractError(each.owner, reason)
        other = taken.setdefault((each.kind, each.place, each.name), each)
        if other.source != each.source:
            position = contracts.position(getattr(other.owner, "full_name", ""))
            where = f"{other.source} ({position})" if position else other.source
            reason = f"its {each.kind} {each.name} is also that of {where}: rename one"
            raise ContractError(each.owner, reason)


def _require_json_name(field: FieldDescriptor) -> None:
    name = str(field.json_name)
    if name in _JSON_NAMES:
        raise ContractError(field, f"tools for the documents cannot use the JSON name {name}")
    if name.startswith("[") and name.endswith("]"):
        raise ContractError(field, f"the JSON name {name} is that of an extension in ProtoJSON")


def generated_names(contracts: Contracts) -> Iterator[GeneratedName]:
    """Yield the names of every output; a name comes after the names that it is built from."""
    for file in contracts.files:
        yield from _of_package(contracts, file)
    for enum in contracts.enums:
        yield from _of_enum(enum)
    for message in contracts.messages:
        yield from _of_message(message)
    for method in contracts.methods:
        yield from _of_method(method)
    yield from _of_documents(contracts)
    yield from _of_parameters(contracts)


def _name(kind: str, name: str, owner: Any, place: str = "", source: str = "") -> GeneratedName:
    source = source or owner.full_name
    return GeneratedName(kind=kind, place=place, name=name, owner=owner, source=source)


def _of_package(contracts: Contracts, file: FileDescriptor) -> Iterator[GeneratedName]:
    """Yield the folders of the package, and its alias in modules that import it."""
    package = file.package
    if package != package.lower():
        raise ContractError(file, f"the package {package} is not in lower case")
    _, first, *parts = package.split(".")
    yield _name(_FOLDER, first, file, source=first)
    yield from (_name(_SUBFOLDER, part, file, package, part) for part in parts)
    yield _name("module alias", snake_case(package), file, source=package)
    yield _name("file in protos.zip", file.name.lower(), file, source=file.name)


def _of_enum(enum: EnumDescriptor) -> Iterator[GeneratedName]:
    yield _of_class(enum)
    yield _name("function", plain_name(enum), enum)
    for value in enum.values:
        member = member_name(enum, value.name)
        yield _name("member", member, enum, enum.full_name, f"the value {value.number}")


def _of_class(kind: Descriptor | EnumDescriptor) -> GeneratedName:
    package = kind.file.package
    rest = kind.full_name.removeprefix(f"{package}.")
    if parse_source_type_name(f".{kind.full_name}") != (package, rest):
        raise ContractError(kind, "the message around it must begin with a capital letter")
    return _name(_CLASS, class_name(kind), kind, package)


def _of_message(message: Descriptor) -> Iterator[GeneratedName]:
    """Yield the class, the codec's functions, and the attributes and JSON names of the fields."""
    yield _of_class(message)
    yield _name("function", plain_name(message), message)
    place = message.full_name
    for field in message.fields:
        yield _name(_FIELD, field.name, field, place)
        yield _name(_ATTRIBUTE, field_name(field), field, place)
        for name in {field.json_name, field.name}:
            yield _name("JSON member", name, field, place)
        if is_map(field):
            parse = parse_source_type_name(f".{field.message_type.full_name}")  # type: ignore[union-attr]  # of a map
            if parse[0] != message.file.package:
                raise ContractError(
                    message, "a message with a map must begin with a capital letter"
                )
            yield _name("map entry", field.name.replace("_", "").lower(), field, place)


def _of_method(method: MethodDescriptor) -> Iterator[GeneratedName]:
    """Yield the names in the stub and the base class of a service; the latter names the handler."""
    service, request = method.containing_service, method.input_type
    for suffix in ("Stub", "Base"):
        yield _name(_CLASS, service_class(service) + suffix, service, service.file.package)
    yield _name(_METHOD, method_name(method), method, service.full_name)
    if request.file.package == service.file.package:
        argument = pythonize_field_name(class_name(request))
        yield _name(_ARGUMENT, argument, method, method.full_name, request.full_name)
    nested = request.full_name.removeprefix(f"{request.file.package}.")
    if pythonize_class_name(nested.replace(".", "")) != class_name(request):
        raise ContractError(method, f"betterproto cannot find {request.full_name}: rename it")
    yield _name("routing key", method.full_name, method)


def _of_documents(contracts: Contracts) -> Iterator[GeneratedName]:
    """Yield the names in the OpenAPI document; the rules of `Names` make them unique."""
    names = Names(contracts)
    for message in (*contracts.messages, *contracts.imported_messages):
        yield from (_name("component", name, message) for name in names.components(message))
    for enum in enums_of_fields(contracts):
        yield _name("component", names.enum(enum), enum)
    for method in contracts.methods:
        service = method.containing_service
        yield _name("tag", names.tag(service), service)
        for end in ("", ".reply"):
            yield _name("channel", method.full_name + end, method)
        for form in ("{}.request", "{}.reply", "call.{}", "result.{}"):
            yield _name("AsyncAPI message", form.format(method.full_name), method)
    for event in contracts.messages:
        if event.full_name in contracts.event_options:
            yield _name("channel", event.full_name, event)
            for form in ("{}.event", "event.{}"):
                yield _name("AsyncAPI message", form.format(event.full_name), event)


def _of_parameters(contracts: Contracts) -> Iterator[GeneratedName]:
    """Yield the names of operations, and of their parameters in path and query."""
    names, rules = Names(contracts), bindings(contracts)
    for method in contracts.methods:
        for index, binding in enumerate(rules[method.full_name]):
            if contracts.method_options[method.full_name].access is not Access.INTERNAL:
                operation = names.operation_id(method, index)
                yield _name("operationId", operation, method, source=f"{method.full_name} {index}")
            place = f"{binding.verb} {binding.path}"
            parameters = re.findall(r"\{([^}]+)\}", binding.path)
            for index, parameter in enumerate(parameters):
                yield _name("path parameter", parameter, method, place, f"wildcard {index + 1}")
            for path in binding.query:
                source = path[-1].full_name
                yield _name("query parameter", json_path(path), method, place, source)
