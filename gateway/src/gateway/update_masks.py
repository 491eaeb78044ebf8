"""Update masks of requests (AIP-134, AIP-161), and read-only members of resources (AIP-203)."""

import re
from collections.abc import Container, Mapping
from functools import cache
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from gateway.parameters import Document, field_named, violation
from postbus.registry import HttpRule, Method
from shared.errors import FieldViolation, shown_name
from shared.output_only import is_output_only
from shared.wire import message_class

__all__ = ["Resource", "derive_mask", "resource_of", "unknown_paths"]

MASK: Final = "update_mask"
_CHANGES: Final = ("PATCH", "PUT")
"""Verbs that change a resource; a client may send it as it was read."""
_CAPITAL: Final = re.compile("[A-Z]")


class Resource:
    """The resource that a method changes.

    `writable` describes the message of the request that holds its fields, `readable` the resource
    in the response. `read_only` has the names of output-only members that are no fields of the
    request: a change ignores them. `has_mask`: the request has an update mask.
    """

    def __init__(self, writable: Descriptor, readable: Descriptor, *, has_mask: bool) -> None:
        self.writable = writable
        self.readable = readable
        self.has_mask = has_mask
        own = {field.name for field in writable.fields}
        self.read_only = frozenset(
            name
            for field in readable.fields
            if field.name not in own and is_output_only(field)
            for name in (field.name, field.json_name)
        )

    def without_read_only(self, document: Document) -> Document:
        """Return a document of the resource without the members in `read_only`."""
        if document.keys().isdisjoint(self.read_only):
            return document
        return {name: value for name, value in document.items() if name not in self.read_only}


@cache
def resource_of(method: Method) -> Resource | None:
    """Return the resource that a method changes by PATCH, PUT or an update mask; None if none."""
    request: Any = message_class(method.request_name).DESCRIPTOR
    has_mask = MASK in request.fields_by_name
    rule = next((rule for rule in method.http if rule.verb in _CHANGES and rule.body), None)
    if rule is None and not has_mask:
        return None
    if name := _resource_field(request, rule):
        body = _message_of_field(request, name)
        return Resource(body, body, has_mask=has_mask)
    response: Any = message_class(method.response_name).DESCRIPTOR
    readable = _message_of_field(response, rule.response_body if rule else _only_message(response))
    return Resource(request, readable, has_mask=has_mask)


def _resource_field(request: Descriptor, rule: HttpRule | None) -> str:
    """Return the name of the request's field with the resource; "" if the request has its fields.

    Without a rule for HTTP it is the only message beside the mask (AIP-134).
    """
    if rule is not None:
        return "" if rule.body == "*" else rule.body
    return _only_message(request)


def _only_message(message: Descriptor) -> str:
    found = [
        field.name
        for field in message.fields
        if field.name != MASK and not field.is_repeated and _is_contract_message(field)
    ]
    return found[0] if len(found) == 1 else ""


def _message_of_field(message: Descriptor, name: str) -> Descriptor:
    """Return the message in a field, or `message` itself if it has no such field."""
    field = field_named(message, name)
    return field.message_type if field and field.message_type else message


def unknown_paths(resource: Resource, message: Any) -> list[FieldViolation]:
    """Return a violation for each path of a request's mask that is no field of the resource.

    The other paths are replaced by the names of the .proto; `*` stands for all fields.
    """
    violations, paths = [], []
    for path in message.update_mask.paths:
        resolved = path if path == "*" else _resolve(resource, path)
        if resolved is None:
            violations.append(
                violation("updateMask", "unknown_field", f"there is no field {shown_name(path)}")
            )
        else:
            paths.append(resolved)
    message.update_mask.paths[:] = paths
    return violations


def _resolve(resource: Resource, path: str) -> str | None:
    for message in (resource.writable, resource.readable):
        if (names := _field_names(message, path.split("."))) is not None:
            return ".".join(names)
    return None


def _field_names(message: Descriptor | None, parts: list[str]) -> list[str] | None:
    """Return the names of the fields along a path in the .proto, None if one does not exist."""
    names = []
    for part in parts:
        fields = message.fields if message else []
        field = next((each for each in fields if part in (each.name, _snake(each.json_name))), None)
        if field is None or field.name == MASK:
            return None
        names.append(field.name)
        message = field.message_type
    return names


def _snake(name: str) -> str:
    return _CAPITAL.sub(lambda found: f"_{found[0].lower()}", name)


def derive_mask(
    message: Any, resource: Resource, client_fields: Mapping[str, Any], *, without: Container[str]
) -> None:
    """Set the mask to the members that the client sent, except the JSON names in `without`."""
    changed = {}
    for name, value in client_fields.items():
        field = field_named(resource.writable, name)
        if field is not None and field.name != MASK and field.json_name not in without:
            changed[field.name] = value
    if paths := _paths(resource.writable, changed):
        message.update_mask.paths.extend(paths)


def _paths(message: Descriptor, document: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the paths of the fields in a document; messages of the contract are descended into."""
    paths = []
    for name, value in document.items():
        if (field := field_named(message, name)) is None or is_output_only(field):
            continue
        path = prefix + field.name
        if isinstance(value, dict) and value and _is_contract_message(field):
            paths += _paths(field.message_type, value, f"{path}.")  # type: ignore[arg-type]  # a message
        else:
            paths.append(path)
    return paths


def _is_contract_message(field: FieldDescriptor) -> bool:
    message = field.message_type
    if message is None or message.full_name.startswith("google.protobuf."):
        return False
    return not message.GetOptions().map_entry
